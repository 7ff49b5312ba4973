<?php
/**
 * Plugin Name: Redis object cache
 * Description: Keeps WordPress's object cache in Redis, through php-redis. The site goes on without it.
 *
 * A drop-in: WordPress loads this file in place of its own cache. When Redis does not answer, the cache
 * lasts for the request alone, Redis is left in peace for some seconds, and what it holds is thrown
 * away when it comes back: it missed the changes made meanwhile.
 */
defined('ABSPATH') || exit;

final class WP_Object_Cache
{
    private const CONNECT_TIMEOUT_SECONDS = 0.2;
    private const READ_TIMEOUT_SECONDS = 0.5;
    private const RETRY_AFTER_SECONDS = 3;

    /** Exists from the moment Redis was found missing until its stale content was thrown away. */
    private const OUTAGE_FILE = WP_CONTENT_DIR . '/.redis-outage';

    public int $cache_hits = 0;
    public int $cache_misses = 0;

    private ?Redis $redis = null;
    private string $prefix;
    private int $blog_id;
    private bool $multisite;
    /** @var array<string, mixed> values of this request, by full key */
    private array $local = [];
    /** @var array<string, true> */
    private array $global_groups = [];
    /** @var array<string, true> groups that never go to Redis */
    private array $local_groups = ['counts' => true, 'plugins' => true];

    public function __construct()
    {
        $this->prefix = 'wp:' . DB_NAME . ':';
        $this->multisite = is_multisite();
        $this->blog_id = $this->multisite ? get_current_blog_id() : 1;
        $this->connect();
    }

    private function connect(): void
    {
        $outage = @filemtime(self::OUTAGE_FILE);
        if ($outage !== false && time() - $outage < self::RETRY_AFTER_SECONDS) {
            return;
        }
        if (!class_exists('Redis')) {
            return;
        }
        try {
            $redis = new Redis();
            // phpredis warns as well as throwing when a name cannot be resolved.
            if (!@$redis->connect(INCEPTION_REDIS_HOST, 6379, self::CONNECT_TIMEOUT_SECONDS, null, 0, self::READ_TIMEOUT_SECONDS)) {
                throw new RedisException('cannot connect');
            }
            $redis->auth(INCEPTION_REDIS_PASSWORD);
            $this->redis = $redis;
            if ($outage !== false || defined('INCEPTION_FORGET_CACHE')) {
                $this->drop_all();
                @unlink(self::OUTAGE_FILE);
            }
        } catch (RedisException $error) {
            $this->lost($error);
        }
    }

    /** Goes on without Redis for the rest of this request, and says so once an outage. */
    private function lost(RedisException $error): void
    {
        $this->redis = null;
        clearstatcache(true, self::OUTAGE_FILE);
        if (!file_exists(self::OUTAGE_FILE)) {
            error_log('object cache: Redis does not answer, going on without: ' . $error->getMessage());
        }
        @touch(self::OUTAGE_FILE);
    }

    /** Runs a command on Redis; `null` when there is none. */
    private function ask(callable $command): mixed
    {
        if ($this->redis === null) {
            return null;
        }
        try {
            return $command($this->redis);
        } catch (RedisException $error) {
            $this->lost($error);
            return null;
        }
    }

    private function key(int|string $key, string $group): string
    {
        $blog = !$this->multisite || isset($this->global_groups[$group]) ? '' : $this->blog_id . ':';
        return $this->prefix . $blog . $group . ':' . $key;
    }

    private static function group(mixed $group): string
    {
        return $group === '' || $group === null ? 'default' : (string) $group;
    }

    private static function valid(mixed $key): bool
    {
        return is_int($key) || (is_string($key) && trim($key) !== '');
    }

    private static function encode(mixed $value): string
    {
        return is_int($value) ? (string) $value : serialize($value);
    }

    private static function decode(string $text): mixed
    {
        // A serialised value never is a bare number.
        return preg_match('/^-?\d{1,18}$/D', $text) ? (int) $text : unserialize($text);
    }

    private static function copied(mixed $value): mixed
    {
        return is_object($value) ? clone $value : $value;
    }

    /** Whether the cache holds the key, here or in Redis; on success `$value` is what it holds. */
    private function look_up(string $full, string $group, bool $force, mixed &$value): bool
    {
        if (array_key_exists($full, $this->local) && (!$force || isset($this->local_groups[$group]))) {
            $value = self::copied($this->local[$full]);
            return true;
        }
        if (isset($this->local_groups[$group])) {
            return false;
        }
        $text = $this->ask(fn (Redis $redis) => $redis->get($full));
        if (!is_string($text)) {
            if ($force && $this->redis !== null) {
                unset($this->local[$full]);
            }
            return false;
        }
        $value = self::decode($text);
        $this->local[$full] = $value;
        $value = self::copied($value);
        return true;
    }

    public function add(mixed $key, mixed $data, mixed $group = 'default', int $expire = 0): bool
    {
        if (wp_suspend_cache_addition() || !self::valid($key)) {
            return false;
        }
        $group = self::group($group);
        $full = $this->key($key, $group);
        if (array_key_exists($full, $this->local)) {
            return false;
        }
        if (!isset($this->local_groups[$group])) {
            $options = $expire > 0 ? ['nx', 'ex' => $expire] : ['nx'];
            if ($this->ask(fn (Redis $redis) => $redis->set($full, self::encode($data), $options)) === false) {
                return false;
            }
        }
        $this->local[$full] = self::copied($data);
        return true;
    }

    public function add_multiple(array $data, mixed $group = '', int $expire = 0): array
    {
        $added = [];
        foreach ($data as $key => $value) {
            $added[$key] = $this->add($key, $value, $group, $expire);
        }
        return $added;
    }

    public function replace(mixed $key, mixed $data, mixed $group = 'default', int $expire = 0): bool
    {
        if (!self::valid($key)) {
            return false;
        }
        $name = self::group($group);
        $old = null;
        return $this->look_up($this->key($key, $name), $name, false, $old) && $this->set($key, $data, $group, $expire);
    }

    public function set(mixed $key, mixed $data, mixed $group = 'default', int $expire = 0): bool
    {
        if (!self::valid($key)) {
            return false;
        }
        $group = self::group($group);
        $full = $this->key($key, $group);
        $this->local[$full] = self::copied($data);
        if (!isset($this->local_groups[$group])) {
            $options = $expire > 0 ? ['ex' => $expire] : [];
            $this->ask(fn (Redis $redis) => $redis->set($full, self::encode($data), $options));
        }
        return true;
    }

    public function set_multiple(array $data, mixed $group = '', int $expire = 0): array
    {
        $set = [];
        foreach ($data as $key => $value) {
            $set[$key] = $this->set($key, $value, $group, $expire);
        }
        return $set;
    }

    public function get(mixed $key, mixed $group = 'default', bool $force = false, ?bool &$found = null): mixed
    {
        $found = false;
        $value = false;
        if (self::valid($key)) {
            $group = self::group($group);
            $found = $this->look_up($this->key($key, $group), $group, $force, $value);
        }
        $found ? ++$this->cache_hits : ++$this->cache_misses;
        return $found ? $value : false;
    }

    public function get_multiple(array $keys, mixed $group = 'default', bool $force = false): array
    {
        $name = self::group($group);
        $missing = [];
        if (!isset($this->local_groups[$name])) {
            foreach (array_filter($keys, self::valid(...)) as $key) {
                $full = $this->key($key, $name);
                if ($force || !array_key_exists($full, $this->local)) {
                    $missing[] = $full;
                }
            }
        }
        // One question for all of them, rather than one each.
        $absent = [];
        if ($missing !== []) {
            $texts = $this->ask(fn (Redis $redis) => $redis->mget($missing));
            foreach (is_array($texts) ? $texts : [] as $index => $text) {
                if (is_string($text)) {
                    $this->local[$missing[$index]] = self::decode($text);
                } else {
                    $absent[$missing[$index]] = true;
                }
            }
        }
        $values = [];
        foreach ($keys as $key) {
            if (self::valid($key) && isset($absent[$this->key($key, $name)])) {
                ++$this->cache_misses;
                $values[$key] = false;
            } else {
                $values[$key] = $this->get($key, $group);
            }
        }
        return $values;
    }

    public function delete(mixed $key, mixed $group = 'default'): bool
    {
        if (!self::valid($key)) {
            return false;
        }
        $group = self::group($group);
        $full = $this->key($key, $group);
        $was_here = array_key_exists($full, $this->local);
        unset($this->local[$full]);
        if (isset($this->local_groups[$group])) {
            return $was_here;
        }
        return (bool) $this->ask(fn (Redis $redis) => $redis->unlink($full)) || $was_here;
    }

    public function delete_multiple(array $keys, mixed $group = ''): array
    {
        $deleted = [];
        foreach ($keys as $key) {
            $deleted[$key] = $this->delete($key, $group);
        }
        return $deleted;
    }

    public function incr(mixed $key, int $offset = 1, mixed $group = 'default'): int|false
    {
        if (!self::valid($key)) {
            return false;
        }
        $name = self::group($group);
        $value = null;
        if (!$this->look_up($this->key($key, $name), $name, false, $value)) {
            return false;
        }
        $value = max(0, (is_numeric($value) ? (int) $value : 0) + $offset);
        $full = $this->key($key, $name);
        $this->local[$full] = $value;
        if (!isset($this->local_groups[$name])) {
            // Keeps the time that the key has left.
            $this->ask(fn (Redis $redis) => $redis->set($full, (string) $value, ['keepttl']));
        }
        return $value;
    }

    public function decr(mixed $key, int $offset = 1, mixed $group = 'default'): int|false
    {
        return $this->incr($key, -$offset, $group);
    }

    public function flush(): bool
    {
        $this->local = [];
        $this->ask(fn () => $this->drop_all());
        return true;
    }

    public function flush_runtime(): bool
    {
        $this->local = [];
        return true;
    }

    public function flush_group(mixed $group): bool
    {
        $start = $this->key('', self::group($group));
        foreach (array_keys($this->local) as $full) {
            if (str_starts_with((string) $full, $start)) {
                unset($this->local[$full]);
            }
        }
        $this->ask(fn () => $this->drop($start));
        return true;
    }

    private function drop_all(): void
    {
        $this->drop($this->prefix);
    }

    /** Drops every key that starts so, a batch at a time: Redis may serve others as well. */
    private function drop(string $start): void
    {
        $cursor = null;
        do {
            $keys = $this->redis->scan($cursor, addcslashes($start, '*?[]\\') . '*', 500);
            if (is_array($keys) && $keys !== []) {
                $this->redis->unlink($keys);
            }
        } while ($cursor > 0);
    }

    public function add_global_groups(string|array $groups): void
    {
        $this->global_groups += array_fill_keys((array) $groups, true);
    }

    public function add_non_persistent_groups(string|array $groups): void
    {
        $this->local_groups += array_fill_keys((array) $groups, true);
    }

    public function switch_to_blog(int $blog_id): void
    {
        $this->blog_id = $this->multisite ? $blog_id : 1;
    }

    public function close(): bool
    {
        return true;
    }

    public function stats(): void
    {
        printf(
            '<p>Redis %s, %d hits, %d misses</p>',
            $this->redis === null ? 'away' : 'in use',
            $this->cache_hits,
            $this->cache_misses
        );
    }
}

// The functions by which WordPress and its plugins reach the cache.

function wp_cache_init()
{
    $GLOBALS['wp_object_cache'] = new WP_Object_Cache();
}

function wp_cache_add($key, $data, $group = '', $expire = 0)
{
    return $GLOBALS['wp_object_cache']->add($key, $data, $group, (int) $expire);
}

function wp_cache_add_multiple(array $data, $group = '', $expire = 0)
{
    return $GLOBALS['wp_object_cache']->add_multiple($data, $group, (int) $expire);
}

function wp_cache_replace($key, $data, $group = '', $expire = 0)
{
    return $GLOBALS['wp_object_cache']->replace($key, $data, $group, (int) $expire);
}

function wp_cache_set($key, $data, $group = '', $expire = 0)
{
    return $GLOBALS['wp_object_cache']->set($key, $data, $group, (int) $expire);
}

function wp_cache_set_multiple(array $data, $group = '', $expire = 0)
{
    return $GLOBALS['wp_object_cache']->set_multiple($data, $group, (int) $expire);
}

function wp_cache_get($key, $group = '', $force = false, &$found = null)
{
    return $GLOBALS['wp_object_cache']->get($key, $group, (bool) $force, $found);
}

function wp_cache_get_multiple($keys, $group = '', $force = false)
{
    return $GLOBALS['wp_object_cache']->get_multiple($keys, $group, (bool) $force);
}

function wp_cache_delete($key, $group = '')
{
    return $GLOBALS['wp_object_cache']->delete($key, $group);
}

function wp_cache_delete_multiple(array $keys, $group = '')
{
    return $GLOBALS['wp_object_cache']->delete_multiple($keys, $group);
}

function wp_cache_incr($key, $offset = 1, $group = '')
{
    return $GLOBALS['wp_object_cache']->incr($key, (int) $offset, $group);
}

function wp_cache_decr($key, $offset = 1, $group = '')
{
    return $GLOBALS['wp_object_cache']->decr($key, (int) $offset, $group);
}

function wp_cache_flush()
{
    return $GLOBALS['wp_object_cache']->flush();
}

function wp_cache_flush_runtime()
{
    return $GLOBALS['wp_object_cache']->flush_runtime();
}

function wp_cache_flush_group($group)
{
    return $GLOBALS['wp_object_cache']->flush_group($group);
}

function wp_cache_supports($feature)
{
    return in_array($feature, ['add_multiple', 'set_multiple', 'get_multiple', 'delete_multiple', 'flush_runtime', 'flush_group'], true);
}

function wp_cache_close()
{
    return $GLOBALS['wp_object_cache']->close();
}

function wp_cache_add_global_groups($groups)
{
    $GLOBALS['wp_object_cache']->add_global_groups($groups);
}

function wp_cache_add_non_persistent_groups($groups)
{
    $GLOBALS['wp_object_cache']->add_non_persistent_groups($groups);
}

function wp_cache_switch_to_blog($blog_id)
{
    $GLOBALS['wp_object_cache']->switch_to_blog((int) $blog_id);
}

function wp_cache_reset()
{
    $GLOBALS['wp_object_cache']->flush_runtime();
}
