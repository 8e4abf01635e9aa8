#!/bin/sh
# Run once by the image of PostgreSQL, on an empty data folder: the role that Walcast streams with, a database for its
# own record, and a publication. Publish the tables that are for everybody with a token, and no others.
set -eu

password=$(cat /run/secrets/walcast_password)
psql --set ON_ERROR_STOP=1 --set password="$password" --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE walcast LOGIN REPLICATION PASSWORD :'password';
CREATE DATABASE walcast OWNER walcast;
CREATE PUBLICATION supabase_realtime;
SQL
