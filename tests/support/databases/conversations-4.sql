BEGIN TRANSACTION;
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL,
    system_prompt TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    -- NULL unless deleted, which can be undone until it is purged
    deleted_at REAL,
    -- the first message that a model still reads, 0 for all of them
    first_kept_id INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "conversations" VALUES(1,'Name a fox.','Be brief.',1790000060.0,1790001080.0,NULL,0);
INSERT INTO "conversations" VALUES(2,'long long long long long long long long','',1790001140.0,1790001560.0,NULL,13);
INSERT INTO "conversations" VALUES(3,'Cleared','',1790001620.0,1790001860.0,NULL,0);
INSERT INTO "conversations" VALUES(4,'deleted','',1790001920.0,1790002160.0,9000000000.0,0);
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
INSERT INTO "drafts" VALUES(1,2,'1 0.00','half a thought',13,'Second, edited again');
CREATE TABLE messages (
    -- also the order within a conversation
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('complete', 'streaming', 'stopped', 'failed')),
    model TEXT NOT NULL,
    -- a JSON object
    statistics TEXT NOT NULL,
    created_at REAL NOT NULL,
    -- the process that streams into it
    writer TEXT,
    -- NULL unless dropped; messages dropped together share it, and later drops have higher ones
    drop_number INTEGER,
    -- the message that they followed, 0 if none
    dropped_after INTEGER
);
INSERT INTO "messages" VALUES(1,1,'user','Name a fox.','complete','','{}',1790000180.0,NULL,NULL,NULL);
INSERT INTO "messages" VALUES(2,1,'assistant','Reynard','complete','SmolLM2 135M','{"num_new_tokens": 1, "seed": 1}',1790000240.0,NULL,1,1);
INSERT INTO "messages" VALUES(3,1,'assistant','Fennec','complete','SmolLM2 135M','{"num_new_tokens": 1, "seed": 1}',1790000360.0,NULL,2,1);
INSERT INTO "messages" VALUES(4,1,'user','And an owl?','complete','','{}',1790000480.0,NULL,2,1);
INSERT INTO "messages" VALUES(5,1,'assistant','Barn owl','stopped','SmolLM2 135M','{"num_new_tokens": 2, "seed": 1}',1790000540.0,NULL,2,1);
INSERT INTO "messages" VALUES(6,1,'assistant','Vulpes','complete','SmolLM2 135M','{"num_new_tokens": 1, "seed": 1}',1790000660.0,NULL,NULL,NULL);
INSERT INTO "messages" VALUES(7,1,'user','Why?','complete','','{}',1790000780.0,NULL,NULL,NULL);
INSERT INTO "messages" VALUES(8,1,'assistant','Because it is Latin.','complete','SmolLM2 135M','{"num_new_tokens": 4, "seed": 1}',1790000840.0,NULL,NULL,NULL);
INSERT INTO "messages" VALUES(9,1,'user','Why Latin?','complete','','{}',1790000960.0,NULL,4,6);
INSERT INTO "messages" VALUES(10,1,'assistant','Linnaeus chose it.','complete','SmolLM2 135M','{"num_new_tokens": 3, "seed": 1}',1790001020.0,NULL,4,6);
INSERT INTO "messages" VALUES(11,2,'user','long long long long long long long long ','complete','','{}',1790001260.0,NULL,NULL,NULL);
INSERT INTO "messages" VALUES(12,2,'assistant','one','complete','SmolLM2 135M','{"num_new_tokens": 1, "seed": 1}',1790001320.0,NULL,NULL,NULL);
INSERT INTO "messages" VALUES(13,2,'user','Second, edited','complete','','{}',1790001440.0,NULL,NULL,NULL);
INSERT INTO "messages" VALUES(14,2,'assistant','two','complete','SmolLM2 135M','{"num_new_tokens": 1, "seed": 1}',1790001500.0,NULL,NULL,NULL);
INSERT INTO "messages" VALUES(15,3,'user','gone','complete','','{}',1790001740.0,NULL,5,0);
INSERT INTO "messages" VALUES(16,3,'assistant','for now','complete','SmolLM2 135M','{"num_new_tokens": 2, "seed": 1}',1790001800.0,NULL,5,0);
INSERT INTO "messages" VALUES(17,4,'user','deleted','complete','','{}',1790002040.0,NULL,NULL,NULL);
INSERT INTO "messages" VALUES(18,4,'assistant','but kept','complete','SmolLM2 135M','{"num_new_tokens": 2, "seed": 1}',1790002100.0,NULL,NULL,NULL);
CREATE INDEX messages_by_conversation ON messages (conversation_id, id);
CREATE INDEX messages_being_written ON messages (writer) WHERE state = 'streaming';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('conversations',5);
INSERT INTO "sqlite_sequence" VALUES('messages',19);
COMMIT;
