//! The labs: their pages and files, which are those of `docs/labs`.

use super::text::Language;

/// A lab.
#[derive(Debug)]
pub(super) struct Lab {
    /// 1 to 10.
    pub(super) number: u8,
    /// Its page's name without the number.
    pub(super) name: &'static str,
    english: &'static str,
    korean: &'static str,
    /// What is put into its directory: name and content.
    pub(super) files: &'static [(&'static str, &'static str)],
}

impl Lab {
    /// Its page.
    pub(super) fn page(&self, language: Language) -> &'static str {
        match language {
            Language::En => self.english,
            Language::Ko => self.korean,
        }
    }

    /// Name of the directory in which it is prepared.
    pub(super) fn directory(&self) -> String {
        format!("lab-{}", self.number)
    }

    /// Name of its stack, as its `stack.toml` says.
    pub(super) fn stack(&self) -> String {
        format!("lab{}", self.number)
    }
}

macro_rules! repository {
    ($($part:expr),*) => { include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../", $($part),*)) };
}

macro_rules! lab {
    ($number:literal, $stem:literal, $name:literal, [$($file:literal),*]) => {
        lab!($number, $stem, $name, [$($file),*], bundles [])
    };
    // With the recipes of services that the repository's own stack has.
    ($number:literal, $stem:literal, $name:literal, [$($file:literal),*], bundles [$($bundle:literal),*]) => {
        Lab {
            number: $number,
            name: $name,
            english: repository!("docs/labs/", $stem, "-", $name, ".md"),
            korean: repository!("docs/ko/labs/", $stem, "-", $name, ".md"),
            files: &[
                $(($file, repository!("docs/labs/", $stem, "-", $name, "/", $file)),)*
                $((concat!("bundles/", $bundle), repository!("bundles/", $bundle)),)*
            ],
        }
    };
}

/// All labs, in their order.
pub(super) const LABS: &[Lab] = &[
    lab!(1, "01", "process", ["stack.toml"]),
    lab!(2, "02", "signals", ["stack.toml", "scripts/database", "scripts/database-safe"]),
    lab!(3, "03", "users", ["stack.toml"]),
    lab!(4, "04", "mounts", ["stack.toml", "enter"]),
    lab!(5, "05", "layers", ["stack.toml", "Dockerfile", "by-hand"]),
    lab!(6, "06", "limits", ["stack.toml"]),
    lab!(7, "07", "network", ["stack.toml", "by-hand", "www/index.html"]),
    lab!(
        8,
        "08",
        "fastcgi",
        ["stack.toml", "nginx.conf", "cgi/Dockerfile", "cgi/once", "lab/who.php", "lab/records.php", "measure"],
        bundles [
            "nginx/Dockerfile.debian",
            "nginx/entrypoint.sh",
            "nginx/healthcheck.sh",
            "nginx/nginx.conf",
            "wordpress/Dockerfile.debian",
            "wordpress/configuration.php",
            "wordpress/entrypoint.sh",
            "wordpress/healthcheck.sh",
            "wordpress/install.php",
            "wordpress/object-cache.php",
            "wordpress/php-fpm.conf",
            "wordpress/settings.php",
            "mariadb/Dockerfile.debian",
            "mariadb/entrypoint.sh",
            "mariadb/healthcheck.sh",
            "mariadb/server.cnf",
            "redis/Dockerfile.debian",
            "redis/entrypoint.sh",
            "redis/healthcheck.sh",
            "redis/redis.conf"
        ]
    ),
    lab!(9, "09", "tls", ["stack.toml", "lab/proxy", "lab/www/cgi-bin/show", "wire"]),
    lab!(10, "10", "ftp", ["stack.toml", "lab/server", "wire"]),
];

#[cfg(test)]
mod tests {
    use super::super::text::{Block, Kind, blocks, title};
    use super::*;

    fn commands(lab: &Lab, language: Language) -> Vec<(Kind, String)> {
        let without_sentences = |block: Block| match block.checks() {
            Some(checks) => checks.into_iter().map(|check| check.commands).collect(),
            None => block.body,
        };
        let kinds = |block: Block| (block.kind.clone(), without_sentences(block));
        blocks(lab.page(language)).into_iter().map(kinds).collect()
    }

    #[test]
    fn both_languages_have_the_same_commands() {
        for lab in LABS {
            let (english, korean) = (commands(lab, Language::En), commands(lab, Language::Ko));
            assert_eq!(english.len(), korean.len(), "lab {}", lab.number);
            for (english, korean) in english.iter().zip(&korean) {
                assert_eq!(english, korean, "lab {}", lab.number);
            }
        }
    }

    #[test]
    fn each_lab_is_whole() {
        for (index, lab) in LABS.iter().enumerate() {
            assert_eq!(usize::from(lab.number), index + 1);
            for (language, word) in [(Language::En, "Lab"), (Language::Ko, "실습")] {
                let page = lab.page(language);
                let name = format!("name = \"{}\"\n", lab.stack());
                assert!(
                    lab.files.iter().any(|(file, text)| *file == "stack.toml" && text.starts_with(&name))
                );
                assert!(title(page).starts_with(&format!("{word} {}: ", lab.number)), "{}", title(page));
                let blocks = blocks(page);
                let checks: Vec<_> = blocks.iter().filter_map(Block::checks).flatten().collect();
                assert!(!checks.is_empty(), "lab {} checks nothing", lab.number);
                assert!(checks.iter().all(|check| !check.commands.is_empty()), "lab {}", lab.number);
                let run = |end: &str| {
                    blocks
                        .iter()
                        .any(|block| matches!(block.kind, Kind::Run { .. }) && block.body.contains(end))
                };
                for step in ["", " check", " clean"] {
                    assert!(
                        run(&format!("inception-run lab {}{step}\n", lab.number)),
                        "lab {}{step}",
                        lab.number
                    );
                }
                assert_eq!(page.matches("<details>").count(), page.matches("</details>").count());
                assert!(page.contains("<details>"), "lab {} answers nothing", lab.number);
            }
        }
    }
}
