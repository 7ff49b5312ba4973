#!/bin/sh
# Healthy when php-fpm takes connections: it starts only once the site is installed.
# shellcheck disable=SC2016 # PHP's variables
exec php -n -r 'exit(@fsockopen("127.0.0.1", 9000, $code, $text, 3) ? 0 : 1);'
