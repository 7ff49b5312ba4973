#!/bin/sh
# Healthy when the server listens on port 21 (0x15), with no connection made.
exec grep -Eq '^ *[0-9]+: [0-9A-F]+:0015 [0-9A-F]+:0000 0A ' /proc/net/tcp /proc/net/tcp6
