<?php
// Who answers: which program, as which process, since when, and what it has in memory from earlier requests.
header('Content-Type: text/plain');
// proc(5): field 22 is the time of the start, in hundredths of a second since the machine's own.
$fields = explode(' ', preg_replace('/.*\) /', '', file_get_contents('/proc/self/stat')));
$age = (float) file_get_contents('/proc/uptime') - $fields[19] / 100;
$cache = function_exists('opcache_get_status') ? opcache_get_status(false) : false;
$kept = $cache ? $cache['opcache_statistics']['num_cached_scripts'] : 0;
printf("%s: process %d, began %.2f s ago, compiled files in memory: %d\n", basename(PHP_BINARY), getmypid(), $age, $kept);
