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

-- Whether a row is as an operation expects it: its value, false when there is none.
local function holds(expect, value)
  if expect == '0' then
    return not value
  elseif expect == '1' then
    return value ~= false
  end
  return value and string.sub(value, 1, 8) == string.sub(expect, 2)
end

-- Where the set behind the one whose operations begin at `i` begins.
local function behind(args, i, ends)
  while i <= ends and args[i] ~= 'S' do
    i = i + (args[i] == 'P' and 5 or 3)
  end
  return i
end

-- Walks through the operations of the set that begins at `i`, each with those before it applied in thought. `now` has the rows before
-- them, and `look` looks at one that it lacks. Answers with the place of the one whose expectation failed.
local function check(args, i, ends, now, look, again)
  local over, gone, op = nil, nil, 0
  while i <= ends and args[i] ~= 'S' do
    local kind, field, expect = args[i], args[i + 1], args[i + 2]
    if kind == 'X' then
      for one in pairs(over or {}) do
        if string.sub(one, 1, #field) == field then
          over[one] = false
        end
      end
      gone = gone or {}
      gone[#gone + 1] = field
    else
      if expect ~= '*' then
        local value = over and over[field]
        if value == nil then
          for at = 1, gone and #gone or 0 do
            if string.sub(field, 1, #gone[at]) == gone[at] then
              value = false
            end
          end
        end
        if value == nil then
          value = now[field]
        end
        if value == nil then
          value = look(field)
        end
        if not holds(expect, value) then
          return op
        end
      end
      if again and kind ~= 'C' then
        over = over or {}
        over[field] = kind == 'P' and args[i + 3]
      end
    end
    i = i + (kind == 'P' and 5 or 3)
    op = op + 1
  end
end

-- Commits change sets of a writer, each whole or not at all. args: the writer; the number of the last set that it heard of; the number of
-- the first that is on its way; then of each set `S`, its number and its operations. Answers with a number for each set: -1 it was applied,
-- -2 one before it is missing, -3 the server lacks what it acknowledged, else the place of the operation whose expectation failed.
-- What a writer's last sets were answered stands in meta: w:WRITER is the number of the last one, c:WRITER the conflicts of those that it
-- has not heard of yet. A set that is sent again because its answer was lost is answered again and does nothing.
-- Numbers are handed on as text: what turns them into it costs more than a row does.
local function commit(keys, args)
  local rows, order, expiry, meta = keys[1], keys[2], keys[3], keys[4]
  local writer, acknowledged, first = args[1], tonumber(args[2]), tonumber(args[3])
  local known = redis.call('HMGET', meta, 'w:' .. writer, 'c:' .. writer, 'schema', 'bytes')
  local last, conflicts, schema, bytes = tonumber(known[1] or '0'), known[2] or '', known[3], tonumber(known[4] or '0')
  -- Rows that operations name, as they are after the sets before; false: there is none. They are looked at together, for each command costs
  -- more than a row does.
  -- `again`: a row may be named more than once, so what operations before did to it has to be kept in mind. Tables have room for one
  -- message from the start: growing bit by bit costs more than filling them.
  local now, ends, wanted, count, again = {}, #args, { nil, nil, nil, nil }, 0, false
  local function look(field)
    if field then
      wanted = { field }
    end
    for at, value in ipairs(redis.call('HMGET', rows, unpack(wanted))) do
      now[wanted[at]] = value
    end
    wanted, count = {}, 0
    return now[field]
  end
  local i = 4
  while i <= ends do
    local kind = args[i]
    if kind == 'S' then
      i = i + 2
    else
      local field = args[i + 1]
      -- Of what is only taken away the size is enough.
      if kind == 'X' or (kind == 'D' and args[i + 2] == '*') or now[field] ~= nil then
        again = true
      else
        now[field], count = false, count + 1
        wanted[count] = field
        if count == 64 then
          look()
        end
      end
      i = i + (kind == 'P' and 5 or 3)
    end
  end
  if count > 0 then
    look()
  end

  -- They are put together, too.
  local put, puts, new, news = { nil, nil, nil, nil, nil, nil, nil, nil }, 0, { nil, nil, nil, nil, nil, nil, nil, nil }, 0
  local timed, untimed, mine = nil, nil, again and {}
  local function flush()
    if puts > 0 then
      redis.call('HSET', rows, unpack(put))
    end
    if news > 0 then
      redis.call('ZADD', order, unpack(new))
    end
    if timed then
      redis.call('ZADD', expiry, unpack(timed))
    end
    if untimed then
      redis.call('ZREM', expiry, unpack(untimed))
    end
  end
  local function flush_and_go_on()
    flush()
    put, puts, new, news, timed, untimed, mine = {}, 0, {}, 0, nil, nil, again and {}
  end
  local function remove(field)
    local size
    if now[field] == nil then
      size = redis.call('HSTRLEN', rows, field)
    else
      size = now[field] and #now[field] or 0
    end
    if size > 0 then
      redis.call('HDEL', rows, field)
      redis.call('ZREM', order, field)
      redis.call('ZREM', expiry, field)
      bytes = bytes - (size - 16) - (#field - 3)
    end
    now[field] = false
  end

  local function apply(i)
    while i <= ends and args[i] ~= 'S' do
      local kind, field = args[i], args[i + 1]
      if kind == 'P' then
        local value, at = args[i + 3], args[i + 4]
        if puts >= 400 or (again and mine[field]) then
          flush_and_go_on()
        end
        local before = now[field]
        put[puts + 1], put[puts + 2], puts = field, value, puts + 2
        if not before then
          new[news + 1], new[news + 2], news = '0', field, news + 2
          bytes = bytes + #field - 3 + #value - 16
        else
          bytes = bytes + #value - #before
        end
        if at ~= '' then
          timed = timed or {}
          timed[#timed + 1] = at
          timed[#timed + 1] = field
        elseif before and string.sub(before, 9, 16) ~= NEVER then
          untimed = untimed or {}
          untimed[#untimed + 1] = field
        end
        now[field] = value
        if again then
          mine[field] = true
        end
        i = i + 5
      elseif kind == 'X' then
        flush_and_go_on()
        for _, one in ipairs(redis.call('ZRANGEBYLEX', order, '[' .. field, '(' .. args[i + 2])) do
          remove(one)
        end
        i = i + 3
      else
        if kind == 'D' then
          if again and mine[field] then
            flush_and_go_on()
          end
          remove(field)
        end
        i = i + 3
      end
    end
  end

  local answers, sound, done = {}, false, nil
  i = 4
  while i <= ends do
    local number, answer = args[i + 1], nil
    local seq = tonumber(number)
    if last >= seq then
      done = done or known[1]
      answer = conflicts == '' and -1 or tonumber(string.match(conflicts, ';' .. number .. ':(%d+);') or '-1')
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
      local conflict = check(args, i + 2, ends, now, look, again)
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
        conflicts, answer = conflicts .. ';' .. number .. ':' .. conflict .. ';', conflict
      else
        apply(i + 2)
        answer = -1
      end
      last, done = seq, number
    end
    answers[#answers + 1] = answer
    i = behind(args, i + 2, ends)
  end

  flush()
  if done then
    -- Also what was known: WAIT waits for no more than what its own connection wrote, and this may be another one.
    if schema then
      redis.call('HSET', meta, 'w:' .. writer, done, 'bytes', string.format('%d', bytes))
    else
      redis.call('HSET', meta, 'w:' .. writer, done)
    end
  end
  if done and conflicts ~= '' then
    -- Of what the writer heard nothing is asked again.
    local kept = ''
    for number, place in string.gmatch(conflicts, ';(%d+):(%d+);') do
      if tonumber(number) > acknowledged then
        kept = kept .. ';' .. number .. ':' .. place .. ';'
      end
    end
    if kept ~= (known[2] or '') then
      redis.call('HSET', meta, 'c:' .. writer, kept)
    end
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
