-- A roll-out says whether it brings configs or programs: a box counts the two apart.

SET LOCAL ROLE facefleet_migrator;
SET LOCAL search_path = facefleet, pg_temp;

ALTER TABLE rollout_boxes ADD COLUMN kind text NOT NULL DEFAULT 'config' CHECK (kind IN ('config', 'software'));
