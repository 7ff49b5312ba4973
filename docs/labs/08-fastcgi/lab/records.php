<?php
// One request to php-fpm, record by record, as nginx sends it.
// https://fastcgi-archives.github.io/FastCGI_Specification.html, section 3.3
const TYPES = [1 => 'BEGIN_REQUEST', 3 => 'END_REQUEST', 4 => 'PARAMS', 5 => 'STDIN', 6 => 'STDOUT', 7 => 'STDERR'];

$variables = [
    'GATEWAY_INTERFACE' => 'CGI/1.1',
    'REQUEST_METHOD' => 'GET',
    'SCRIPT_FILENAME' => '/var/www/html/lab/who.php',
];

// A length each, a byte long, then name and value.
function pairs(array $variables): string
{
    $text = '';
    foreach ($variables as $name => $value) {
        $text .= pack('CC', strlen($name), strlen($value)) . $name . $value;
    }
    return $text;
}

function show(string $direction, int $type, string $content): void
{
    printf("%s %s, %d bytes\n", $direction, TYPES[$type], strlen($content));
    $text = match (TYPES[$type]) {
        'PARAMS' => $content === '' ? '' : urldecode(http_build_query($GLOBALS['variables'], '', "\n")),
        'STDOUT', 'STDERR' => $content,
        default => '',
    };
    echo $text === '' ? '' : preg_replace('/^/m', '      ', rtrim($text)) . "\n";
}

function send($connection, int $type, string $content): void
{
    show('>', $type, $content);
    // Eight bytes: version, type, number of the request, length, padding, one that means nothing.
    fwrite($connection, pack('CCnnCC', 1, $type, 1, strlen($content), 0, 0) . $content);
}

$connection = fsockopen('127.0.0.1', 9000);
// Role 1 is `responder`.
send($connection, 1, pack('nCx5', 1, 0));
send($connection, 4, pairs($variables));
send($connection, 4, '');
send($connection, 5, '');
while (($header = fread($connection, 8)) !== '' && $header !== false) {
    ['type' => $type, 'length' => $length, 'padding' => $padding] =
        unpack('Cversion/Ctype/nnumber/nlength/Cpadding', $header);
    $content = $length + $padding > 0 ? stream_get_contents($connection, $length + $padding) : '';
    show('<', $type, substr($content, 0, $length));
}
