<?php
/** Writes a wp-config.php with fresh keys and salts to standard output; the settings stay in the image. */
echo "<?php\n";
foreach (['AUTH', 'SECURE_AUTH', 'LOGGED_IN', 'NONCE'] as $use) {
    foreach (['KEY', 'SALT'] as $kind) {
        echo "define('{$use}_{$kind}', '", bin2hex(random_bytes(32)), "');\n";
    }
}
echo "require '/usr/local/share/inception/settings.php';\n";
echo "if (!defined('ABSPATH')) {\n    define('ABSPATH', __DIR__ . '/');\n}\n";
echo "require_once ABSPATH . 'wp-settings.php';\n";
