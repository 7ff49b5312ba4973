#!/bin/sh
if [ ! -f /etc/ssl/certs/site.crt ]; then
    echo "Nginx: setting up ssl ..."
    openssl req -x509 -nodes -days 365 -newkey rsa:2048 -keyout /etc/ssl/private/site.key \
        -out /etc/ssl/certs/site.crt -subj "/C=FR/L=Paris/O=42/CN=$DOMAIN_NAME" 2>/dev/null
    echo "Nginx: ssl is set up!"
fi
exec nginx -g 'daemon off;'
