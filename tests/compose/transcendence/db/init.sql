CREATE TABLE matches (id serial);
