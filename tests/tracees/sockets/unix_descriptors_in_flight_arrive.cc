// Descriptors that are on their way in messages: of files with their offsets, of files without a
// name that nobody else has, of pipes, of sockets; of a socket on its way in itself. In a stream
// they come with the very byte that they were sent with.
#include "unix.h"
using namespace tracee;

namespace {

int file_at(const std::string& path, off_t offset) {
  write_file(path, "0123456789");
  const int fd = open(path.c_str(), O_RDWR);
  need(fd >= 0 && lseek(fd, offset, SEEK_SET) == offset, "open(%s)", path.c_str());
  return fd;
}

std::string rest_of(int fd) {
  char text[32] = {};
  const ssize_t n = read(fd, text, sizeof text - 1);
  check(n >= 0, "read: errno %d", errno);
  return text;
}

}  // namespace

int main() {
  Scratch scratch;
  int stream[2], packets[2], nested[2], loop[2], through[2];
  for (auto* pair : {&stream, &packets, &nested, &loop, &through})
    need(socketpair(AF_UNIX, pair == &packets ? SOCK_SEQPACKET : SOCK_STREAM, 0, *pair) == 0,
         "socketpair");
  const int kept = file_at(scratch.path("kept"), 3), sent = file_at(scratch.path("sent"), 5);
  const int nameless = file_at(scratch.path("nameless"), 7);
  unlink((scratch.dir() + "/nameless").c_str());
  const int memory = static_cast<int>(syscall(SYS_memfd_create, "tracee", 0));
  need(memory >= 0 && write(memory, "memory", 6) == 6 && lseek(memory, 2, SEEK_SET) == 2, "memfd");
  int ends[2];
  need(pipe(ends) == 0 && write(ends[1], "in a pipe", 9) == 9, "pipe");

  // The bytes before, with and after descriptors.
  need(send(stream[0], "before", 6, 0) == 6, "send");
  need(send_with(stream[0], "with", {kept, sent}) == 4, "send");
  need(send(stream[0], "after", 5, 0) == 5, "send");
  need(send_with(stream[0], "!", {nameless, memory}) == 1, "send");
  need(send_with(stream[0], "?", {ends[0]}) == 1, "send");
  close(sent), close(nameless), close(memory), close(ends[0]);
  // A socket with something in it, in a packet; the end of a pair in the queue of the other.
  need(send(nested[0], "deep", 4, 0) == 4 && send_with(nested[0], "d", {through[0]}) == 1, "send");
  need(send_with(packets[0], "", {nested[1]}) == 0 && send_with(packets[0], "2", {}) == 1, "send");
  close(nested[1]);
  need(send(through[1], "through", 7, 0) == 7, "send");
  close(through[0]);
  need(send_with(loop[0], "l", {loop[1], loop[0]}) == 1, "send");

  ready();
  wait_moved();

  Received came = receive(stream[1], 1);
  check(came.files.empty() && came.data == "b", "the first byte came with descriptors");
  came = receive(stream[1], 5);
  check(came.files.empty() && came.data == "efore", "bytes before came with descriptors");
  came = receive(stream[1], 2);
  if (!check(came.data == "wi" && came.files.size() == 2, "%zu descriptors with \"%s\"",
             came.files.size(), came.data.c_str()))
    return ok();
  same("the kept file", "3456789", rest_of(came.files[0]));
  same("its offset is shared", "", rest_of(kept));
  same("the sent file", "56789", rest_of(came.files[1]));
  came = receive(stream[1]);
  same("the rest of the piece", "th", came.data.substr(0, 2));
  while (came.files.empty() && came.bytes > 0) came = receive(stream[1]);
  if (!check(came.files.size() == 2, "%zu descriptors", came.files.size())) return ok();
  same("the file without a name", "789", rest_of(came.files[0]));
  same("memory", "mory", rest_of(came.files[1]));
  came = receive(stream[1]);
  if (!check(came.files.size() == 1, "no pipe came")) return ok();
  same("in a pipe", "in a pipe", rest_of(came.files[0]));
  check(write(ends[1], "more", 4) == 4 && rest_of(came.files[0]) == "more", "the pipe is another");

  came = receive(packets[1]);
  if (!check(came.bytes == 0 && came.files.size() == 1, "an empty packet with a socket"))
    return ok();
  const int inner = came.files[0];
  same("the next packet", "2", receive(packets[1]).data);
  same("deep", "deep", receive(inner, 4).data);
  came = receive(inner);
  if (!check(came.files.size() == 1, "nothing was in it")) return ok();
  same("through", "through", receive(came.files[0]).data);
  passes(came.files[0], through[1], "back");
  came = receive(loop[1]);
  if (!check(came.files.size() == 2, "the ends of a loop")) return ok();
  passes(came.files[1], loop[1], "round");
  passes(loop[0], came.files[0], "and round");
  return ok();
}
