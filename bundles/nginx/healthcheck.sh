#!/bin/sh
# Healthy when a TLS handshake succeeds.
exec openssl s_client -connect 127.0.0.1:443 -brief < /dev/null > /dev/null 2>&1
