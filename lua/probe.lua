-- probe: is the shard's primary able to run scripts? Reads, writes nothing.
-- KEYS[1] the shard's hash. Reply: 1 when it exists, else 0. A cluster that is down answers
-- CLUSTERDOWN to a key, where a bare PING would say PONG.
return redis.call('EXISTS', KEYS[1])
