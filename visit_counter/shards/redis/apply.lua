-- Applies a batch: adds its visits to the counts of one partition, and sets the writer's watermark, or does neither.
--
-- KEYS  1  the partition
-- ARGV  1  the writer's watermark field
--       2  the watermark that is expected there ('' for none)
--       3  the watermark of the batch
--       4  a page, 5 its visits, and so on in pairs
--
-- Returns the watermark that is there afterwards. An error means that nothing was changed.
--
-- A person or another program may have written a count that is not a number. The visits of such a page are set aside:
-- they are kept in the field TAB aside TAB page, and the sum over all pages in TAB aside. They are counted with the next
-- visits of the page after its count has been mended. The names of the batch's pages with such counts follow the
-- watermark in the answer, each after a tab.
--
-- The field TAB stamp says which apply changed the partition last, and which was the last before it of another writer:
-- `<writer>/<watermark> <writer>/<watermark>`. Every other host sees there that the counts have changed.
--
-- Redis does not undo a script that fails half-way. So everything is checked and added up before the first write.
-- One HSET writes up to 999 pages and the watermark, because Lua's unpack allows about 8,000 values. Lua counts in
-- doubles, which are exact below 2^53: HINCRBY adds to a larger count. If the batch is there already, its watermark is
-- written again: WAITAOF waits for the last write of its connection, and this write makes it cover the batch.

local key, field, expected, watermark = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local aside, stamp = '\taside', '\tstamp'
local marks = redis.call('HMGET', key, field, aside, stamp)
local present = marks[1] or ''
if present == watermark then
  redis.call('HSET', key, field, watermark)
  return watermark
end
if present ~= expected then return present end
local before = tonumber(marks[2]) or 0
local held, answer, writes, large = before, watermark, {}, {}
for first = 4, #ARGV, 1998 do
  local pages, write = {}, {}
  for at = first, math.min(first + 1996, #ARGV), 2 do pages[#pages + 1] = ARGV[at] end
  local counts = redis.call('HMGET', key, unpack(pages))
  local function put(name, number) write[#write + 1], write[#write + 2] = name, string.format('%.0f', number) end
  for index, page in ipairs(pages) do
    local count, visits = counts[index] or '0', tonumber(ARGV[first + 2 * index - 1])
    local sound = #count <= 18 and (count == '0' or string.find(count, '^[1-9]%d*$'))
    local name, kept = aside .. '\t' .. page, 0
    if not sound or before > 0 then kept = tonumber(redis.call('HGET', key, name)) or 0 end
    if not sound then
      held, answer = held + visits, answer .. '\t' .. page
      put(name, kept + visits)
    else
      if kept > 0 then held, visits = held - kept, visits + kept; put(name, 0) end
      local total = tonumber(count) + visits
      if total < 9007199254740992 then put(page, total) else large[#large + 1] = {page, visits} end
    end
  end
  writes[#writes + 1] = write
end
local last = writes[#writes] or {}
if held ~= before then last[#last + 1], last[#last + 2] = aside, string.format('%.0f', held) end
last[#last + 1], last[#last + 2] = field, watermark
local me = string.sub(field, 2) .. '/'
local latest, others = string.match(marks[3] or '', '^(%S*) ?(%S*)')
if string.sub(latest, 1, #me) ~= me then others = latest end
last[#last + 1], last[#last + 2] = stamp, me .. watermark .. ' ' .. others
writes[math.max(#writes, 1)] = last
for _, each in ipairs(large) do redis.call('HINCRBY', key, each[1], string.format('%.0f', each[2])) end
for _, write in ipairs(writes) do
  if #write > 0 then redis.call('HSET', key, unpack(write)) end
end
return answer
