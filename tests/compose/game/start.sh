#!/bin/sh
tty >/dev/null && echo "on a terminal"
echo "$MOTD | $EQUALS | $QUOTES | $* | $(pwd) | $(hostname) | $(cat server.cfg)"
(while :; do echo pong | nc -u -l -p 27015; done) >/dev/null &
exec nc -lk -p 27015 -e sh -c 'read -r what; echo "welcome, you $what"'
