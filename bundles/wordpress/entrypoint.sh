#!/bin/sh
# Brings the WordPress files, their configuration and the site up to date on the volume, then becomes
# php-fpm. Each step is safe to repeat, and does nothing when there is nothing to do.
set -eu

readonly SOURCE=/usr/src/wordpress
readonly OURS=/usr/local/share/inception
readonly ROOT=/var/www/html
# The image keeps it apart: it is placed last, so that it tells which version is complete here.
readonly SOURCE_VERSION=/usr/src/wordpress-version.php
readonly VERSION=$ROOT/wp-includes/version.php

fail() {
    printf 'wordpress: %s\n' "$1" >&2
    exit 1
}

# php-fpm's workers are not root: they get copies of the secrets, in memory.
place_secrets() {
    mkdir -p /run/wordpress /run/php
    chown root:www-data /run/wordpress
    chmod 0750 /run/wordpress
    for name in mysql_password redis_password wp_admin_password wp_user_password; do
        [ -r "/run/secrets/$name" ] || fail "no secret $name (/run/secrets/$name)"
        (umask 027 && cat "/run/secrets/$name" > "/run/wordpress/$name")
        chown root:www-data "/run/wordpress/$name"
    done
}

# The version that a version.php states; nothing when it is not there.
version() {
    [ ! -r "$1" ] || sed -n "s/^\$wp_version = '\(.*\)';.*/\1/p" "$1"
}

# Copies WordPress to the volume unless one as new is there: the user may have brought a newer one.
place_files() {
    here=$(version "$VERSION")
    image=$(version "$SOURCE_VERSION")
    if [ -n "$here" ] && [ "$(printf '%s\n%s\n' "$image" "$here" | sort -V | tail -n 1)" = "$here" ]; then
        return
    fi
    echo "wordpress: placing version $image" >&2
    rm -f "$VERSION"
    cp -a "$SOURCE/." "$ROOT/"
    cp -p "$SOURCE_VERSION" "$VERSION.new"
    chown www-data:www-data "$VERSION.new"
    mv "$VERSION.new" "$VERSION"
}

# The salts are made once: new ones would end every session.
place_configuration() {
    [ ! -s "$ROOT/wp-config.php" ] || return 0
    (umask 077 && php -n "$OURS/configuration.php" > "$ROOT/wp-config.php.new")
    chown root:www-data "$ROOT/wp-config.php.new"
    chmod 0640 "$ROOT/wp-config.php.new"
    mv "$ROOT/wp-config.php.new" "$ROOT/wp-config.php"
}

place_object_cache() {
    cmp -s "$OURS/object-cache.php" "$ROOT/wp-content/object-cache.php" && return
    cp "$OURS/object-cache.php" "$ROOT/wp-content/object-cache.php.new"
    mv "$ROOT/wp-content/object-cache.php.new" "$ROOT/wp-content/object-cache.php"
}

[ "${1-}" = php-fpm ] || exec "$@"
shift

place_secrets
place_files
place_configuration
place_object_cache
php "$OURS/install.php"

exec php-fpm --nodaemonize --fpm-config /etc/inception/php-fpm.conf "$@"
