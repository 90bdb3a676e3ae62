-- What of a mailbox is one sender's, kept with the sender's lanes.
ALTER TABLE lanes ADD COLUMN messages INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lanes ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE lanes SET messages = held.messages, bytes = held.bytes
FROM (SELECT device, sender, count(*) AS messages, sum(length(blob)) AS bytes FROM messages GROUP BY device, sender) AS held
WHERE lanes.device = held.device AND lanes.sender = held.sender;
