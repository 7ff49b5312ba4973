#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static int ask(const char *host, int port)
{
	char buf[512];
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct hostent *entry = gethostbyname(host);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (!entry)
		return 1;
	memcpy(&to.sin_addr, entry->h_addr_list[0], 4);
	if (connect(fd, (struct sockaddr *)&to, sizeof to))
		return 1;
	dprintf(fd, "GET / HTTP/1.0\r\n\r\n");
	for (ssize_t n; (n = read(fd, buf, sizeof buf)) > 0;)
		fwrite(buf, 1, n, stdout);
	return 0;
}

int main(int argc, char **argv)
{
	int on = 1, port = 8080;
	struct sockaddr_in at = {.sin_family = AF_INET};
	struct rlimit files;

	if (argc > 1 && !strcmp(argv[1], "--version"))
		return puts(VERSION) < 0;
	if (argc > 1 && !strcmp(argv[1], "--check"))
		return ask("127.0.0.1", port);
	if (argc > 2 && !strcmp(argv[1], "--get"))
		return ask(strtok(argv[2] + strlen("http://"), ":"), port);
	if (argc > 2 && !strcmp(argv[1], "--port"))
		port = atoi(argv[2]);
	getrlimit(RLIMIT_NOFILE, &files);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	at.sin_port = htons(port);
	if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 16))
		return perror("listen"), 1;
	for (int client; (client = accept(fd, 0, 0)) >= 0; close(client)) {
		char buf[512];
		if (read(client, buf, sizeof buf) > 0)
			dprintf(client, "HTTP/1.0 200 OK\r\n\r\nversion %s, user %d, files %d\n", VERSION, (int)getuid(),
				(int)files.rlim_cur);
		shutdown(client, SHUT_WR);
		read(client, buf, sizeof buf);
	}
	return 0;
}
