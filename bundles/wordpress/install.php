<?php
/**
 * Installs the site into its database unless it is there: title, administrator and one author, from
 * the environment. Waits for the database, up to a minute.
 */
declare(strict_types=1);

const ROOT = '/var/www/html';
const DATABASE_DEADLINE_SECONDS = 60;

function fail(string $message): never
{
    fwrite(STDERR, "wordpress: $message\n");
    exit(1);
}

function setting(string $name): string
{
    $value = getenv($name);
    if ($value === false || $value === '') {
        fail("the setting $name is missing");
    }
    return $value;
}

/** Exists while the site is being installed; what is found with it is half made. */
const UNFINISHED = 'wp_being_installed';

/** @return list<string> the site's tables */
function tables(mysqli $database): array
{
    return array_column($database->query("SHOW TABLES LIKE 'wp\\_%'")->fetch_all(), 0);
}

/** Readies the database for an installation, and whether one is needed: a site of any making is kept. */
function needs_installation(mysqli $database): bool
{
    $tables = tables($database);
    if (in_array(UNFINISHED, $tables, true)) {
        foreach (array_diff($tables, [UNFINISHED]) as $table) {
            $database->query("DROP TABLE `$table`");
        }
        return true;
    }
    if (in_array('wp_options', $tables, true)
        && $database->query("SELECT 1 FROM wp_options WHERE option_name = 'siteurl'")->num_rows > 0) {
        return false;
    }
    $database->query('CREATE TABLE ' . UNFINISHED . ' (id INT)');
    return true;
}

function connect(): mysqli
{
    mysqli_report(MYSQLI_REPORT_OFF);
    $deadline = microtime(true) + DATABASE_DEADLINE_SECONDS;
    $password = rtrim((string) file_get_contents('/run/wordpress/mysql_password'), "\r\n");
    while (true) {
        $database = mysqli_init();
        $database->options(MYSQLI_OPT_CONNECT_TIMEOUT, 2);
        $connected = @$database->real_connect(
            getenv('MYSQL_HOST') ?: 'mariadb',
            setting('MYSQL_USER'),
            $password,
            setting('MYSQL_DATABASE')
        );
        if ($connected) {
            mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
            return $database;
        }
        if (microtime(true) > $deadline) {
            fail('no database after ' . DATABASE_DEADLINE_SECONDS . ' s: ' . mysqli_connect_error());
        }
        usleep(50_000);
    }
}

/** Before WordPress is loaded, its own functions can be replaced: there is no mail here to send. */
function wp_new_blog_notification(string $title, string $url, int $user, string $password): void
{
}

if (str_contains(strtolower(setting('WP_ADMIN_USER')), 'admin')) {
    fail('WP_ADMIN_USER must not contain "admin"');
}
if (setting('WP_ADMIN_USER') === setting('WP_USER')) {
    fail('WP_ADMIN_USER and WP_USER must differ');
}

$database = connect();
if (!needs_installation($database)) {
    exit(0);
}

fwrite(STDERR, "wordpress: first start, installing the site\n");
define('WP_INSTALLING', true);
// Redis may hold what a former database left.
define('INCEPTION_FORGET_CACHE', true);
require ROOT . '/wp-load.php';
require ABSPATH . 'wp-admin/includes/upgrade.php';
// WordPress tries its own address to choose a form of links; nobody answers yet.
add_filter('pre_http_request', fn () => new WP_Error('http_request_failed', 'not while installing'));
add_filter('pre_wp_mail', '__return_true');

$domain = getenv('DOMAIN_NAME') ?: 'localhost';
$mail_domain = str_contains($domain, '.') ? $domain : "$domain.invalid";

$admin = setting('WP_ADMIN_USER');
wp_install(setting('WP_TITLE'), $admin, "$admin@$mail_domain", true, '', inception_secret('wp_admin_password'));
$author = setting('WP_USER');
$made = wp_insert_user([
    'user_login' => $author,
    'user_pass' => inception_secret('wp_user_password'),
    'user_email' => "$author@$mail_domain",
    'role' => 'author',
]);
if (is_wp_error($made)) {
    fail("user $author: " . $made->get_error_message());
}
update_option('permalink_structure', '/%year%/%monthnum%/%day%/%postname%/');
$GLOBALS['wp_rewrite']->init();
flush_rewrite_rules(false);

$database->query('DROP TABLE ' . UNFINISHED);
