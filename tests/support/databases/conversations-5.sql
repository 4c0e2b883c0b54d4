BEGIN TRANSACTION;
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL,
    system_prompt TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    -- NULL unless deleted, which can be undone until it is purged
    deleted_at REAL,
    -- the last message of the branch that is shown, 0 if none is
    leaf_id INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "conversations" VALUES(1,'Name a fox.','Be brief.',1790000060.0,1790000480.0,NULL,4);
CREATE TABLE drafts (
    id INTEGER PRIMARY KEY,
    -- NULL for a conversation that is yet to begin
    conversation_id INTEGER REFERENCES conversations (id) ON DELETE CASCADE,
    -- the process that it is written in
    writer TEXT NOT NULL,
    text TEXT NOT NULL,
    -- the prompt that `edit` is to take the place of, 0 if none
    edited_id INTEGER NOT NULL,
    edit TEXT NOT NULL
);
INSERT INTO "drafts" VALUES(1,1,'1 0.00','half a thought',1,'again');
CREATE TABLE messages (
    -- higher than that of the message that it follows
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    -- the message that it follows, 0 for none
    parent_id INTEGER NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('complete', 'streaming', 'stopped', 'failed')),
    model TEXT NOT NULL,
    -- a JSON object
    statistics TEXT NOT NULL,
    created_at REAL NOT NULL,
    -- whether a model reads it no longer
    is_left_out INTEGER NOT NULL DEFAULT 0,
    -- the process that streams into it
    writer TEXT,
    -- the later a branch that was shown and ended here was left, the higher
    last_shown INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "messages" VALUES(1,1,0,'user','Name a fox.','complete','','{}',1790000180.0,1,NULL,3);
INSERT INTO "messages" VALUES(2,1,1,'assistant','Reynard','complete','SmolLM2 135M','{"num_new_tokens": 1, "seed": 1}',1790000240.0,0,NULL,1);
INSERT INTO "messages" VALUES(3,1,1,'assistant','Vulpes','complete','SmolLM2 135M','{"num_new_tokens": 1, "seed": 1}',1790000360.0,0,NULL,2);
INSERT INTO "messages" VALUES(4,1,2,'user','Why?','complete','','{}',1790000480.0,0,NULL,0);
CREATE INDEX messages_by_conversation ON messages (conversation_id, id);
CREATE INDEX messages_being_written ON messages (writer) WHERE state = 'streaming';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('conversations',2);
INSERT INTO "sqlite_sequence" VALUES('messages',5);
COMMIT;
