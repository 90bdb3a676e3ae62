-- The device's own MAC over its highest send counter, which only the device can judge; NULL when none came with it.
ALTER TABLE devices ADD COLUMN counter_mac BLOB;
