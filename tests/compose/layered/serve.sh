#!/bin/sh
read -r _
printf "HTTP/1.0 200 OK\r\n\r\n%s %s %s: " "$BUILT_FOR" "$MODE" "${FROM_BASE-none}"
cat /www/index.html
