#!/bin/sh
exec nc -lk -p 8080 -e sh -c 'while read -r line; do [ ${#line} -le 1 ] && break; done; printf "HTTP/1.0 200 OK\r\n\r\n[$GREETING] [$PLACE] [$A] [$B] "; cat /three /pages/index.html'
