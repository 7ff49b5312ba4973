<?php
/**
 * Settings of the site, read by its wp-config.php: from the environment, and passwords from files
 * that the entrypoint placed where php-fpm's own user can read them. None is in the web root.
 */
function inception_secret(string $name): string
{
    return rtrim((string) file_get_contents("/run/wordpress/$name"), "\r\n");
}

define('DB_HOST', getenv('MYSQL_HOST') ?: 'mariadb');
define('DB_NAME', getenv('MYSQL_DATABASE'));
define('DB_USER', getenv('MYSQL_USER'));
define('DB_PASSWORD', inception_secret('mysql_password'));
define('DB_CHARSET', 'utf8mb4');
define('DB_COLLATE', '');
$table_prefix = 'wp_';

define('INCEPTION_REDIS_HOST', getenv('REDIS_HOST') ?: 'redis');
define('INCEPTION_REDIS_PASSWORD', inception_secret('redis_password'));

// The address as the browser sees it: with the published port, unless that is the default one.
$inception_port = getenv('HTTPS_PORT') ?: '443';
define('WP_HOME', 'https://' . (getenv('DOMAIN_NAME') ?: 'localhost') . ($inception_port === '443' ? '' : ":$inception_port"));
define('WP_SITEURL', WP_HOME);
define('FORCE_SSL_ADMIN', true);
if (PHP_SAPI === 'cli') {
    $_SERVER['HTTP_HOST'] = parse_url(WP_HOME, PHP_URL_HOST) . ($inception_port === '443' ? '' : ":$inception_port");
    $_SERVER['HTTPS'] = 'on';
    $_SERVER['REQUEST_METHOD'] = 'GET';
    $_SERVER['REQUEST_URI'] = '/';
}

// The container has no way out: no fetching of updates and news, and no visits to the site itself.
define('WP_HTTP_BLOCK_EXTERNAL', true);
define('AUTOMATIC_UPDATER_DISABLED', true);
define('DISABLE_WP_CRON', true);
define('DISALLOW_FILE_EDIT', true);
define('FS_METHOD', 'direct');
define('WP_DEBUG', false);
