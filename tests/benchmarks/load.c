/* The readers of the benchmark: many websockets of the legacy protocol in one thread, counting what arrives.
 *
 *     load PORT PATH CLIENTS MESSAGES IDLE_S LIMIT_S AT_ONCE TOPIC JOIN EVENT
 *
 * Opens CLIENTS connections to 127.0.0.1, joins TOPIC on each, prints "ready SECONDS" when all have joined, and then
 * counts the messages of EVENT; JOIN is the payload of the join, and {n} in TOPIC or JOIN the number of the client. It ends when every client has MESSAGES of them, when nothing came for IDLE_S seconds, or
 * after LIMIT_S seconds whatever happens, and prints one line of JSON. A message that holds "@@" and a number of
 * microseconds since 1970 is timed against it.
 *
 * At most AT_ONCE handshakes are under way; many may wait in the listener's backlog, and be timed as its repeated SYNs.
 *
 * Written for speed where the frames come in, and for shortness elsewhere; it trusts its server.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CLIENTS = 20000,
    MAX_LIMIT_S = 600,
    MAX_LATENCIES = 8 << 20,
    READ_BYTES = 256 << 10,
};

enum state { CONNECTING, UPGRADED, JOINED, CLOSED };

struct client {
    int fd;
    enum state state;
    long messages;
    char *rest; /* the beginning of a frame whose end has not come yet */
    size_t rest_len, rest_size;
};

static char needle[64];
static size_t needle_len;
static const char STAMP[] = "@@";

static struct client *clients;
static int client_count, joined_count, closed_count, finished_count;
static long wanted, messages, bytes;
static double first_at, last_at;
static uint32_t *latencies_us;
static size_t latency_count;
static const char *topic, *join_payload;

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "load: ");
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A client's frame: masked, with a mask of zeros, so that its payload goes out as it is (RFC 6455, section 5.3). */
static size_t make_frame(char *out, size_t size, unsigned char opcode, const char *payload, size_t len)
{
    size_t head = 2;
    if (len > 65535 || len + 8 > size)
        die("a frame of %zu bytes is too long to send", len);
    out[0] = (char)(0x80 | opcode);
    if (len < 126) {
        out[1] = (char)(0x80 | len);
    } else {
        out[1] = (char)(0x80 | 126);
        out[2] = (char)(len >> 8);
        out[3] = (char)len;
        head = 4;
    }
    memset(out + head, 0, 4);
    memcpy(out + head + 4, payload, len);
    return head + 4 + len;
}

/* What we send is small and rare: a socket that does not take it at once is broken. */
static void send_all(struct client *client, const char *data, size_t len)
{
    if (send(client->fd, data, len, MSG_NOSIGNAL) != (ssize_t)len)
        die("cannot send: %s", strerror(errno));
}

static void connect_next(int epoll, int port, const char *request)
{
    struct client *client = &clients[client_count];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)client_count};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    client->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (client->fd < 0)
        die("no socket for client %d: %s; raise the limit of open files (ulimit -n)", client_count, strerror(errno));
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("cannot connect to 127.0.0.1:%d: %s", port, strerror(errno));
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    send_all(client, request, strlen(request));
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event);
    client_count++;
}

static void close_client(struct client *client)
{
    close(client->fd);
    client->state = CLOSED;
    closed_count++;
}

/* Where a message holds what is sought: mostly so far from its beginning, or from its end, as in the one before. */
static const char *find(const char *text, size_t len, const char *sought, size_t size, size_t *at, int from_end)
{
    size_t place = from_end ? len - *at : *at;
    if (*at <= len && place + size <= len && !memcmp(text + place, sought, size))
        return text + place;
    const char *found = memmem(text, len, sought, size);
    if (found)
        *at = from_end ? len - (size_t)(found - text) : (size_t)(found - text);
    return found;
}

static void take_text(struct client *client, const char *text, size_t len)
{
    static size_t event_at, stamp_at;
    if (client->state == UPGRADED) {
        if (!memmem(text, len, "\"ok\"", 4))
            die("the join was refused: %.*s", (int)(len < 300 ? len : 300), text);
        client->state = JOINED;
        joined_count++;
        return;
    }
    if (!find(text, len, needle, needle_len, &event_at, 0))
        return;
    double arrived_at = now();
    if (!messages)
        first_at = arrived_at;
    last_at = arrived_at;
    messages++;
    bytes += (long)len;
    if (++client->messages == wanted)
        finished_count++;
    const char *stamp = find(text, len, STAMP, sizeof STAMP - 1, &stamp_at, 1);
    if (stamp && latency_count < MAX_LATENCIES) {
        uint64_t sent_us = 0;
        for (stamp += 2; stamp < text + len && *stamp >= '0' && *stamp <= '9'; stamp++)
            sent_us = sent_us * 10 + (uint64_t)(*stamp - '0');
        double latency_us = arrived_at * 1e6 - (double)sent_us;
        latencies_us[latency_count++] = latency_us > 0 ? (uint32_t)(latency_us < 4e9 ? latency_us : 4e9) : 0;
    }
}

/* Take the whole frames out of data, and return how many bytes they were. */
static size_t take_frames(struct client *client, const char *data, size_t len)
{
    size_t at = 0;
    while (client->state != CLOSED && len - at >= 2) {
        const unsigned char *head = (const unsigned char *)data + at;
        uint64_t payload_len = head[1] & 127;
        size_t head_len = payload_len == 127 ? 10 : payload_len == 126 ? 4 : 2;
        if (len - at < head_len)
            break;
        if (head_len > 2) {
            payload_len = 0;
            for (size_t i = 2; i < head_len; i++)
                payload_len = payload_len << 8 | head[i];
        }
        if (len - at - head_len < payload_len)
            break;
        const char *payload = data + at + head_len;
        int opcode = head[0] & 15;
        if (opcode == 9) {
            char pong[160];
            send_all(client, pong, make_frame(pong, sizeof pong, 10, payload, payload_len));
        } else if (opcode == 8) {
            close_client(client);
        } else {
            take_text(client, payload, payload_len);
        }
        at += head_len + payload_len;
    }
    return at;
}

static void join(struct client *client)
{
    char pattern[2048], text[2048], frame[2100];
    int pattern_len = snprintf(pattern, sizeof pattern,
                               "{\"topic\":\"%s\",\"event\":\"phx_join\",\"payload\":%s,\"ref\":\"1\"}", topic, join_payload);
    size_t len = 0, room = sizeof text - 12;
    for (const char *at = pattern; *at && len < room && pattern_len < (int)sizeof pattern;) {
        if (strncmp(at, "{n}", 3)) {
            text[len++] = *at++;
        } else {
            len += (size_t)sprintf(text + len, "%d", (int)(client - clients));
            at += 3;
        }
    }
    if (pattern_len >= (int)sizeof pattern || len >= room)
        die("the topic is too long");
    send_all(client, frame, make_frame(frame, sizeof frame, 1, text, len));
}

/* Take the answer to the upgrade, and join. Returns how many bytes it was; 0 if it is not all there yet. */
static size_t take_upgrade(struct client *client, const char *data, size_t len)
{
    const char *end = memmem(data, len, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (len < 12 || memcmp(data, "HTTP/1.1 101", 12))
        die("the server did not upgrade: %.*s", (int)(end - data < 80 ? end - data : 80), data);
    client->state = UPGRADED;
    join(client);
    return (size_t)(end - data) + 4;
}

static void keep_rest(struct client *client, const char *rest, size_t len)
{
    if (len > client->rest_size) {
        client->rest_size = len * 2;
        client->rest = realloc(client->rest, client->rest_size);
        if (!client->rest)
            die("out of memory");
    }
    if (len)
        memmove(client->rest, rest, len);
    client->rest_len = len;
}

static void read_client(struct client *client)
{
    static char buffer[2 * READ_BYTES];
    char *data = buffer;
    size_t len = client->rest_len, taken = 0;
    ssize_t got;
    if (len > READ_BYTES) { /* one large frame: read on behind what is there */
        size_t needed = len + READ_BYTES;
        if (needed > client->rest_size) {
            client->rest_size = needed * 2;
            client->rest = realloc(client->rest, client->rest_size);
            if (!client->rest)
                die("out of memory");
        }
        data = client->rest;
    } else if (len) {
        memcpy(buffer, client->rest, len);
    }
    got = recv(client->fd, data + len, READ_BYTES, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        close_client(client);
        return;
    }
    len += (size_t)got;
    if (client->state == CONNECTING)
        taken = take_upgrade(client, data, len);
    if (client->state != CONNECTING)
        taken += take_frames(client, data + taken, len - taken);
    keep_rest(client, data + taken, len - taken);
}

static int by_size(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static double percentile_ms(double share)
{
    return latency_count ? latencies_us[(size_t)((double)(latency_count - 1) * share)] / 1000.0 : 0;
}

static void report(void)
{
    long fewest = client_count ? clients[0].messages : 0, most = 0;
    double seconds = last_at - first_at;
    for (int i = 0; i < client_count; i++) {
        fewest = clients[i].messages < fewest ? clients[i].messages : fewest;
        most = clients[i].messages > most ? clients[i].messages : most;
    }
    qsort(latencies_us, latency_count, sizeof *latencies_us, by_size);
    printf("{\"messages\": %ld, \"fewest\": %ld, \"most\": %ld, \"closed\": %d, \"bytes\": %ld, \"seconds\": %.6f, "
           "\"p50_ms\": %.3f, \"p95_ms\": %.3f, \"p99_ms\": %.3f}\n",
           messages, fewest, most, closed_count, bytes, seconds > 1e-6 ? seconds : 1e-6, percentile_ms(.5),
           percentile_ms(.95), percentile_ms(.99));
}

int main(int argc, char **argv)
{
    if (argc != 11)
        die("usage: load PORT PATH CLIENTS MESSAGES IDLE_S LIMIT_S AT_ONCE TOPIC JOIN EVENT");
    int port = atoi(argv[1]), wanted_clients = atoi(argv[3]), at_once = atoi(argv[7]);
    double idle_s = atof(argv[5]), limit_s = atof(argv[6]), started_at = now(), heard_at = started_at;
    char request[2048];
    wanted = atol(argv[4]);
    if (wanted_clients < 1 || wanted_clients > MAX_CLIENTS || limit_s <= 0 || limit_s > MAX_LIMIT_S)
        die("1 to %d clients, and at most %d seconds", MAX_CLIENTS, MAX_LIMIT_S);
    int request_len = snprintf(request, sizeof request,
                               "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                               "Sec-WebSocket-Key: d2FsY2FzdCBiZW5jaG1hcg==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                               argv[2], port);
    topic = argv[8];
    join_payload = argv[9];
    needle_len = (size_t)snprintf(needle, sizeof needle, "\"event\":\"%s\"", argv[10]);
    if (needle_len >= sizeof needle)
        die("the event's name is too long");
    if (request_len >= (int)sizeof request)
        die("the path is too long");

    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    clients = calloc((size_t)wanted_clients, sizeof *clients);
    latencies_us = malloc(MAX_LATENCIES * sizeof *latencies_us);
    int epoll = epoll_create1(0), ready = 0;
    if (!clients || !latencies_us || epoll < 0)
        die("out of memory");

    while (finished_count < wanted_clients && closed_count < wanted_clients) {
        static struct epoll_event events[1024];
        while (client_count < wanted_clients && client_count - joined_count - closed_count < at_once)
            connect_next(epoll, port, request);
        int count = epoll_wait(epoll, events, 1024, 100);
        for (int i = 0; i < count; i++) {
            struct client *client = &clients[events[i].data.u32];
            if (client->state != CLOSED)
                read_client(client);
        }
        double at = now();
        if (count > 0)
            heard_at = at;
        if (!ready && joined_count == wanted_clients) {
            ready = 1;
            printf("ready %.3f\n", at - started_at);
            fflush(stdout);
        }
        if (at - started_at > limit_s || at - heard_at > idle_s)
            break;
    }
    if (!ready)
        die("%d of %d clients joined, %d were closed", joined_count, wanted_clients, closed_count);
    report();
    return 0;
}
