// Listeners with names in the abstract namespace and in the file system, connections through them
// with clients that have names of their own; a name that was renamed, one that was removed, one
// that was relative. They serve on, and both ends are called what they were.
#include "unix.h"
using namespace tracee;

namespace {

struct Server {
  Server(int t, const std::string& n, const std::string& client_name)
      : type(t), name(n), reached(n), listener(unix_listener(t, n)) {
    first = unix_pair(listener, t, n, client_name);
    second = unix_pair(listener, t, n);
    for (const Pair& pair : {first, second})
      for (int fd : {pair.client, pair.server})
        names.push_back(unix_name_of(fd) + " " + unix_name_of(fd, true));
    need(send(first.client, "waits", 5, 0) == 5, "send");
  }
  void check_all() {
    same("the listener's name", name, unix_name_of(listener));
    size_t at = 0;
    for (const Pair& pair : {first, second})
      for (int fd : {pair.client, pair.server})
        same("names of both ends", names[at++], unix_name_of(fd) + " " + unix_name_of(fd, true));
    same("what waits", "waits", receive(first.server).data);
    passes(first.client, first.server, "to");
    passes(second.server, second.client, "fro");
    Pair another;
    another.client = unix_socket(type);
    if (reached.empty()) return;
    check(connect_to(another.client, reached) == 0, "connect(%s): errno %d", reached.c_str(),
          errno);
    another.server = accept(listener, nullptr, nullptr);
    check(another.server >= 0, "accept: errno %d", errno);
    passes(another.client, another.server, "new");
    same("the new one's name", name, unix_name_of(another.server));
  }
  int type;
  std::string name, reached;
  int listener;
  Pair first, second;
  std::vector<std::string> names;
};

int taken(int type, const std::string& name) {
  const int fd = socket(AF_UNIX, type, 0);
  Address address = unix_name(name);
  const int error = bind(fd, address.at(), address.bytes) == 0 ? 0 : errno;
  close(fd);
  return error;
}

}  // namespace

int main() {
  Scratch scratch;
  const std::string plain = scratch.path("plain"), from = scratch.path("from"),
                    to = scratch.path("to"), gone = scratch.path("gone"),
                    relative = scratch.path("relative"), client = scratch.path("client");
  scratch.path("late");
  const std::string own = "@godwit-tracee-" + std::to_string(getpid());
  need(chdir(scratch.dir().c_str()) == 0, "chdir");
  Server servers[] = {Server(SOCK_STREAM, own + "-s", own + "-client"),
                      Server(SOCK_SEQPACKET, own + "-q", ""),
                      Server(SOCK_STREAM, plain, client),
                      Server(SOCK_STREAM, from, ""),
                      Server(SOCK_SEQPACKET, gone, ""),
                      Server(SOCK_STREAM, "./relative", "")};
  need(rename(from.c_str(), to.c_str()) == 0 && unlink(gone.c_str()) == 0, "rename");
  servers[3].reached = to, servers[4].reached = "";
  // A listener that is no more, whose name its connection still shows.
  Server former(SOCK_STREAM, own + "-former", "");
  close(former.listener);
  // Clients that haven't noticed that their server's ends are closed, and one that went itself,
  // whose name somebody else has by now.
  const std::string left = own + "-left", again = own + "-again";
  const int listener = unix_listener(SOCK_STREAM, left);
  Pair forsaken[] = {unix_pair(listener, SOCK_STREAM, left),
                     unix_pair(listener, SOCK_STREAM, left)};
  for (Pair& pair : forsaken)
    need(send(pair.server, "last", 4, 0) == 4, "send"), close(pair.server);
  Pair goes = unix_pair(listener, SOCK_STREAM, left, again);
  need(send(goes.client, "went", 4, 0) == 4, "send");
  close(goes.client);
  const int has_it_now = unix_socket(SOCK_STREAM, again);
  const int bound = unix_socket(SOCK_STREAM, "late");  // Listens only after the move.
  need(chmod(plain.c_str(), 0640) == 0, "chmod");
  struct stat before {};
  need(stat(plain.c_str(), &before) == 0, "stat");

  ready();
  wait_moved();

  for (Server& server : servers) server.check_all();
  same("former listener's name", own + "-former", unix_name_of(former.first.server));
  same("peer's name", own + "-former", unix_name_of(former.first.client, true));
  for (const Pair& pair : forsaken) {
    same("a closed end's name", left, unix_name_of(pair.client, true));
    same("its last words", "last", receive(pair.client).data);
    same("the end", 0, receive(pair.client).bytes);
  }
  same("accepted by", left, unix_name_of(goes.server));
  same("who went", again, unix_name_of(goes.server, true));
  same("who is called so now", again, unix_name_of(has_it_now));
  same("its last words", "went", receive(goes.server).data);
  const Pair fresh = unix_pair(listener, SOCK_STREAM, left);
  passes(fresh.client, fresh.server, "fresh");
  same("name is free", 0, taken(SOCK_STREAM, own + "-former"));
  same("name is held", EADDRINUSE, taken(SOCK_STREAM, own + "-s"));
  same("client's name is held", EADDRINUSE, taken(SOCK_STREAM, own + "-client"));
  check(listen(bound, 1) == 0, "listen: errno %d", errno);
  const Pair late = unix_pair(bound, SOCK_STREAM, "late");
  passes(late.client, late.server, "late");
  struct stat now {};
  check(stat(plain.c_str(), &now) == 0, "stat: errno %d", errno);
  same("mode", before.st_mode, now.st_mode);
  same("owner", before.st_uid, now.st_uid);
  same("group", before.st_gid, now.st_gid);
  check(
      before.st_mtim.tv_sec == now.st_mtim.tv_sec && before.st_mtim.tv_nsec == now.st_mtim.tv_nsec,
      "the node has another time");
  check(access(from.c_str(), F_OK) != 0 && access(gone.c_str(), F_OK) != 0, "a node has come back");
  return ok();
}
