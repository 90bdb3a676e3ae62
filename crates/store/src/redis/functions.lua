#!lua name=stvor_v5
-- The functions of STVOR stores. KEYS of every one: rows (hash: field -> version 8, expiry 8, sealed bytes), order (sorted
-- set of the fields, all of score 0), expiry (sorted set: field by expiry), meta (hash). All four are in one slot.
-- A field is: table 1, length of the partition 2, partition, sort key.
-- The layout is SCHEMA; the first write notes that in meta, so that nothing is there before it.
local SCHEMA = '1'
-- The expiry of a row that has none.
local NEVER = '\255\255\255\255\255\255\255\255'

-- Whether some of the keys are gone and others are not, as after an eviction: what is left is no store.
local function torn(rows, order)
  local count = redis.call('HLEN', rows)
  if count ~= redis.call('ZCARD', order) then
    if count == 0 then
      return redis.error_reply('STVOREMPTIED its rows in Redis are gone (evicted or deleted)')
    end
    return redis.error_reply('STVORDAMAGED some of its keys in Redis are gone (evicted or deleted) and others are not')
  end
end

-- Seconds after which the marks of a writer that does nothing any more go: no call is repeated so late.
local REST = 30 * 24 * 60 * 60

-- Takes away the marks of writers that ended without doing so themselves. s:WRITER is when another one's first call found the number of
-- its last call, and that number: who has another one by now is at work.
local function forget(meta, own)
  local now = tonumber(redis.call('TIME')[1])
  local last, seen = {}, {}
  local found = redis.call('HGETALL', meta)
  for i = 1, #found, 2 do
    local kind, writer = string.sub(found[i], 1, 2), string.sub(found[i], 3)
    if kind == 'w:' then
      last[writer] = found[i + 1]
    elseif kind == 's:' then
      seen[writer] = found[i + 1]
    end
  end
  for writer, seq in pairs(last) do
    local at, before = string.match(seen[writer] or '', '^(%d+):(%d+)$')
    if writer ~= own and before ~= seq then
      redis.call('HSET', meta, 's:' .. writer, string.format('%d:%s', now, seq))
    elseif writer ~= own and now - tonumber(at) > REST then
      redis.call('HDEL', meta, 'w:' .. writer, 'c:' .. writer, 's:' .. writer)
    end
  end
  for writer in pairs(seen) do
    if not last[writer] then
      redis.call('HDEL', meta, 's:' .. writer)
    end
  end
end

-- Commits change sets of a writer, each whole or not at all. args: the writer; the number of the last set that it heard of; the number of
-- the first that is on its way; then of each set `S`, its number and its operations. Answers with a number for each set: -1 it was applied,
-- -2 one before it is missing, -3 the server lacks what it acknowledged, else the place of the operation whose expectation failed.
-- What a writer's last sets were answered stands in meta: w:WRITER is the number of the last one, c:WRITER the conflicts of those that it
-- has not heard of yet. A set that is sent again because its answer was lost is answered again and does nothing.
local function commit(keys, args)
  local rows, order, expiry, meta = keys[1], keys[2], keys[3], keys[4]
  local writer, acknowledged, first = args[1], tonumber(args[2]), tonumber(args[3])
  local known = redis.call('HMGET', meta, 'w:' .. writer, 'c:' .. writer, 'schema', 'bytes')
  local last, conflicts, schema, bytes = tonumber(known[1] or '0'), known[2] or '', known[3], tonumber(known[4] or '0')
  -- Rows that operations name, as they are after the sets before: version, size, whether they never expire. They are looked at together, for
  -- each command costs more than a row does.
  local now, sizes, lasts, ends = {}, {}, {}, #args
  local wanted = {}
  local function look()
    for at, value in ipairs(redis.call('HMGET', rows, unpack(wanted))) do
      local field = wanted[at]
      now[field] = value and string.sub(value, 1, 8)
      sizes[field] = value and #value or 0
      lasts[field] = value and string.sub(value, 9, 16) == NEVER
    end
    wanted = {}
  end
  local i = 4
  while i <= ends do
    local kind, field = args[i], args[i + 1]
    if kind == 'S' then
      i = i + 2
    else
      -- Of what is only taken away the size is enough.
      local looked = kind ~= 'X' and not (kind == 'D' and args[i + 2] == '*')
      if looked and now[field] == nil then
        now[field] = false
        wanted[#wanted + 1] = field
        if #wanted == 64 then
          look()
        end
      end
      i = i + (kind == 'P' and 5 or 3)
    end
  end
  if #wanted > 0 then
    look()
  end

  -- They are put together, too.
  local put, new, timed, untimed, mine = {}, {}, {}, {}, {}
  local function flush()
    if #put > 0 then
      redis.call('HSET', rows, unpack(put))
    end
    if #new > 0 then
      redis.call('ZADD', order, unpack(new))
    end
    if #timed > 0 then
      redis.call('ZADD', expiry, unpack(timed))
    end
    if #untimed > 0 then
      redis.call('ZREM', expiry, unpack(untimed))
    end
    put, new, timed, untimed, mine = {}, {}, {}, {}, {}
  end
  local function remove(field)
    local size = sizes[field] or redis.call('HSTRLEN', rows, field)
    if size > 0 then
      redis.call('HDEL', rows, field)
      redis.call('ZREM', order, field)
      redis.call('ZREM', expiry, field)
      bytes = bytes - (size - 16) - (#field - 3)
    end
    now[field], sizes[field] = false, 0
  end

  -- Walks through the operations of the set that begins at `i`, each with those before it applied in thought. Answers with the place of the
  -- one whose expectation failed, and where the next set begins.
  local function check(i)
    local over, gone, conflict, op = {}, {}, nil, 0
    local function version(field)
      if over[field] ~= nil then
        return over[field]
      end
      for at = 1, #gone do
        if string.sub(field, 1, #gone[at]) == gone[at] then
          return false
        end
      end
      if now[field] == nil then
        wanted = { field }
        look()
      end
      return now[field]
    end
    local function holds(expect, field)
      local kind = string.sub(expect, 1, 1)
      if kind == '*' then
        return true
      elseif kind == '0' then
        return not version(field)
      elseif kind == '1' then
        return version(field) ~= false
      end
      return version(field) == string.sub(expect, 2)
    end
    while i <= ends and args[i] ~= 'S' do
      local kind, field = args[i], args[i + 1]
      if kind == 'X' then
        for one in pairs(over) do
          if string.sub(one, 1, #field) == field then
            over[one] = false
          end
        end
        gone[#gone + 1] = field
      elseif not conflict and not holds(args[i + 2], field) then
        conflict = op
      elseif kind == 'P' then
        over[field] = string.sub(args[i + 3], 1, 8)
      elseif kind == 'D' then
        over[field] = false
      end
      i = i + (kind == 'P' and 5 or 3)
      op = op + 1
    end
    return conflict, i
  end

  local function apply(i)
    while i <= ends and args[i] ~= 'S' do
      local kind, field = args[i], args[i + 1]
      if kind == 'P' then
        local value, at = args[i + 3], args[i + 4]
        if mine[field] or #put >= 400 then
          flush()
        end
        local size = sizes[field]
        put[#put + 1] = field
        put[#put + 1] = value
        if size == 0 then
          new[#new + 1] = 0
          new[#new + 1] = field
          bytes = bytes + #field - 3 + #value - 16
        else
          bytes = bytes + #value - size
        end
        if at ~= '' then
          timed[#timed + 1] = at
          timed[#timed + 1] = field
        elseif size > 0 and not lasts[field] then
          untimed[#untimed + 1] = field
        end
        mine[field], now[field], sizes[field], lasts[field] = true, string.sub(value, 1, 8), #value, at == ''
        i = i + 5
      elseif kind == 'X' then
        flush()
        for _, one in ipairs(redis.call('ZRANGEBYLEX', order, '[' .. field, '(' .. args[i + 2])) do
          remove(one)
        end
        i = i + 3
      else
        if kind == 'D' then
          if mine[field] then
            flush()
          end
          remove(field)
        end
        i = i + 3
      end
    end
  end

  local answers, sound, done = {}, false, false
  i = 4
  while i <= ends do
    local seq, answer = tonumber(args[i + 1]), nil
    local conflict, after = nil, nil
    if last >= seq then
      done = true
      answer = tonumber(string.match(conflicts, ';' .. args[i + 1] .. ':(%d+);') or '-1')
    elseif last < acknowledged then
      -- The server lacks what it acknowledged to this writer: it was put back. What is damaged says so first.
      if not schema and redis.call('HLEN', rows) > 0 then
        return redis.error_reply('STVORDAMAGED its meta key in Redis is gone (evicted or deleted): restart the program')
      end
      local damage = torn(rows, order)
      if damage then
        return damage
      end
      answer = -3
    elseif seq ~= first and seq ~= last + 1 then
      answer = -2
    else
      conflict, after = check(i + 2)
      if not conflict and not sound then
        -- Nothing was written yet, and nobody else writes meanwhile.
        local damage = torn(rows, order)
        -- What was answered is forgotten with meta: a set could be done twice. The first set of a writer was answered by nobody.
        if not damage and not schema and seq ~= 1 and redis.call('HLEN', rows) > 0 then
          damage = redis.error_reply('STVORDAMAGED its meta key in Redis is gone (evicted or deleted): restart the program')
        end
        if damage then
          return damage
        end
        sound = true
      end
      if not schema and (not conflict or (seq == 1 and redis.call('HLEN', rows) > 0)) then
        schema, bytes = SCHEMA, 0
        for _, field in ipairs(redis.call('HKEYS', rows)) do
          bytes = bytes + #field - 3 + redis.call('HSTRLEN', rows, field) - 16
        end
        redis.call('HSET', meta, 'schema', SCHEMA)
      end
      if seq == 1 then
        forget(meta, writer)
      end
      if conflict then
        conflicts, answer = conflicts .. ';' .. args[i + 1] .. ':' .. conflict .. ';', conflict
      else
        apply(i + 2)
        answer = -1
      end
      last, done = seq, true
    end
    if not after then
      after = i + 2
      while after <= ends and args[after] ~= 'S' do
        after = after + (args[after] == 'P' and 5 or 3)
      end
    end
    answers[#answers + 1] = answer
    i = after
  end

  flush()
  -- Of what the writer heard nothing is asked again.
  local kept = ''
  for number, place in string.gmatch(conflicts, ';(%d+):(%d+);') do
    if tonumber(number) > acknowledged then
      kept = kept .. ';' .. number .. ':' .. place .. ';'
    end
  end
  if done then
    -- Also what was known: WAIT waits for no more than what its own connection wrote, and this may be another one.
    local mark = { 'w:' .. writer, last }
    if schema then
      mark[3], mark[4] = 'bytes', string.format('%.0f', bytes)
    end
    redis.call('HSET', meta, unpack(mark))
  end
  if done and kept ~= (known[2] or '') then
    redis.call('HSET', meta, 'c:' .. writer, kept)
  end
  return answers
end

-- args: first field, end (not in it), limit, 1 for backwards, bytes of values. Answers 1 if more follow, then fields and
-- values.
local function scan(keys, args)
  local rows, order = keys[1], keys[2]
  local damage = torn(rows, order)
  if damage then
    return damage
  end
  local limit, most = tonumber(args[3]), tonumber(args[5])
  local found
  if args[4] == '1' then
    found = redis.call('ZREVRANGEBYLEX', order, '(' .. args[2], '[' .. args[1], 'LIMIT', 0, limit + 1)
  else
    found = redis.call('ZRANGEBYLEX', order, '[' .. args[1], '(' .. args[2], 'LIMIT', 0, limit + 1)
  end
  local page, bytes = { 0 }, 0
  for index, field in ipairs(found) do
    local value = redis.call('HGET', rows, field)
    if not value then
      return redis.error_reply('STVORDAMAGED a row is in the order and not in the rows')
    end
    bytes = bytes + #value - 16
    if index > limit or (bytes > most and index > 1) then
      page[1] = 1
      break
    end
    page[#page + 1] = field
    page[#page + 1] = value
  end
  return page
end

-- args: now, limit. Answers how many rows it removed.
local function sweep(keys, args)
  local rows, order, expiry, meta = keys[1], keys[2], keys[3], keys[4]
  local due = redis.call('ZRANGEBYSCORE', expiry, '-inf', args[1], 'LIMIT', 0, tonumber(args[2]))
  local bytes = 0
  for _, field in ipairs(due) do
    local size = redis.call('HSTRLEN', rows, field)
    redis.call('HDEL', rows, field)
    redis.call('ZREM', order, field)
    redis.call('ZREM', expiry, field)
    if size > 0 then
      bytes = bytes - (size - 16) - (#field - 3)
    end
  end
  if #due > 0 then
    redis.call('HINCRBY', meta, 'bytes', bytes)
  end
  return #due
end

redis.register_function { function_name = 'stvor_v5_commit', callback = commit }
-- For what puts no row: it makes room.
redis.register_function { function_name = 'stvor_v5_release', callback = commit, flags = { 'allow-oom' } }
redis.register_function { function_name = 'stvor_v5_scan', callback = scan, flags = { 'no-writes' } }
redis.register_function { function_name = 'stvor_v5_sweep', callback = sweep, flags = { 'allow-oom' } }
