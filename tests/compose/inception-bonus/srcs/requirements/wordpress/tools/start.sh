#!/bin/sh
if ! [ -e .installed ]; then
  cp -R /usr/src/app/. .
  chown -R www-data:www-data /var/www/html
  touch .installed
fi
exec php-fpm${PHP_VERSION} --nodaemonize
