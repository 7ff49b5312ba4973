<?php
require 'wp-config.php';
$db = new mysqli(DB_HOST, DB_USER, DB_PASSWORD, DB_NAME);
$title = $db->query('SELECT value FROM wp_options WHERE name = "blogname"')->fetch_row()[0];
$author = $db->query('SELECT login FROM wp_users')->fetch_row()[0];
?>
<!doctype html>
<title><?= htmlspecialchars($title) ?></title>
<p>written by <?= htmlspecialchars($author) ?> on <?= getenv('SITE') ?>, seen by <?= $_SERVER['REMOTE_ADDR'] ?></p>
