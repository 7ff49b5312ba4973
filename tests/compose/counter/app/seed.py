import sys
from store import command

print(command("SET", "hits", sys.argv[1]))
