# Starts PostgreSQL on its own data directory, which it makes at the first start.
set -eu
data=$PWD/.data/postgres

# Debian keeps the server's programs out of PATH.
for bin in /usr/lib/postgresql/*/bin; do
    PATH=$PATH:$bin
done

# PostgreSQL refuses to run as root: root hands the directory to the user `postgres` and becomes that user.
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$data"
    chmod 700 "$data"
    chown -R postgres: "$data"
    exec setpriv --reuid=postgres --regid=postgres --init-groups sh "$0"
fi

if [ ! -e "$data/PG_VERSION" ]; then
    mkdir -p "$data"
    initdb --pgdata="$data" --username=shop --auth=trust --encoding=UTF8 --locale=C --no-sync
fi
exec postgres -D "$data" -p "$PORT" -c listen_addresses=127.0.0.1 -c unix_socket_directories=
