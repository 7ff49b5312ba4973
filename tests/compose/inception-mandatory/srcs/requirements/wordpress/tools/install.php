<?php
require 'wp-config.php';
[, $title, $user, $password, $mail] = $argv;
$db = new mysqli(DB_HOST, DB_USER, DB_PASSWORD, DB_NAME);
$db->query('CREATE TABLE IF NOT EXISTS wp_users (login VARCHAR(60), pass VARCHAR(255), mail VARCHAR(100))');
$db->query('CREATE TABLE IF NOT EXISTS wp_options (name VARCHAR(60), value TEXT)');
$add = $db->prepare('INSERT INTO wp_users VALUES (?, ?, ?)');
$add->execute([$user, password_hash($password, PASSWORD_DEFAULT), $mail]);
$add = $db->prepare('INSERT INTO wp_options VALUES ("blogname", ?)');
$add->execute([$title]);
