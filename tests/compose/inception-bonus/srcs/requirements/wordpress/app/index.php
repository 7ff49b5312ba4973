<?php
$db = new mysqli('db', getenv('MYSQL_USER'), getenv('MYSQL_PASSWORD'), getenv('MYSQL_DATABASE'));
$redis = fsockopen(getenv('REDIS_HOST'), 6379);
fwrite($redis, "INCR hits\r\n");
echo "database ", $db->query('SELECT DATABASE()')->fetch_row()[0], ", hit ", trim(fgets($redis), ":\r\n"), "\n";
