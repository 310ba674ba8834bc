-- What Nix 2.34 wrote after it had asked an HTTP cache for a path that is there and one that is not.
BEGIN TRANSACTION;
CREATE TABLE BinaryCaches (
    id        integer primary key autoincrement not null,
    url       text unique not null,
    timestamp integer not null,
    storeDir  text not null,
    wantMassQuery integer not null,
    priority  integer not null
);
INSERT INTO "BinaryCaches" VALUES(1,'http://localhost:8140',1795471975,'/nix/store',0,0);
CREATE TABLE LastPurge (
    dummy            text primary key,
    value            integer
);
INSERT INTO "LastPurge" VALUES('',1795471975);
CREATE TABLE NARs (
    cache            integer not null,
    hashPart         text not null,
    namePart         text,
    url              text,
    compression      text,
    fileHash         text,
    fileSize         integer,
    narHash          text,
    narSize          integer,
    refs             text,
    deriver          text,
    sigs             text,
    ca               text,
    timestamp        integer not null,
    present          integer not null,
    primary key (cache, hashPart),
    foreign key (cache) references BinaryCaches(id) on delete cascade
);
INSERT INTO "NARs" VALUES(1,'y9xsr1hg3kf7xbva2dgqpagj6x6555a3','a','nar/0kwnzfnhkydqkdls2rc7ag3w795w1ffd9m2vl1ys33y5hsg961lz.nar.xz','xz','sha256:0kwnzfnhkydqkdls2rc7ag3w795w1ffd9m2vl1ys33y5hsg961lz',124,'sha256:11hap619k9yv29jfxdq44d7fxwks93qsw8w8iwbgdjwxni9zsxlj',120,'',NULL,'t-1:N0TqLDQGO5hR4jQ4x4esKkb8IjQ0psww4gP+HdavcPbldV1QZ/TFX6gdph+HutAjueq3lzInFbytXaNZPhw5Dw==','fixed:r:sha256:11hap619k9yv29jfxdq44d7fxwks93qsw8w8iwbgdjwxni9zsxlj',1795471975,1);
INSERT INTO "NARs" VALUES(1,'ksndzbhi1maykqax5lj5q2wzn5in9gk8',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1795471975,0);
CREATE TABLE Realisations (
    cache integer not null,
    outputId text not null,
    content blob, -- Json serialisation of the realisation, or null if the realisation is absent
    timestamp        integer not null,
    primary key (cache, outputId),
    foreign key (cache) references BinaryCaches(id) on delete cascade
);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('BinaryCaches',1);
COMMIT;
