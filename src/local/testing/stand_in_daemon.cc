// What tests of the local cluster run as godwitd: listens where godwitd would, and nothing else.
// It checks what it was started with, as the real one does.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "base/io.h"

int main(int argc, char** argv) {
  if (argc != 3 || std::strcmp(argv[1], "--config") != 0) return 2;
  godwit::Result<std::string> config = godwit::read_file(argv[2]);
  if (!config.ok() || config->find("[tls]") == std::string::npos) return 3;

  constexpr const char* path = "/run/godwit/godwitd.sock";
  ::unlink(path);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path);
  int listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return 4;
  if (::listen(listener, 64) != 0) return 5;
  std::fprintf(stderr, "stand-in listens\n");
  while (true) {
    int client = ::accept(listener, nullptr, nullptr);
    if (client >= 0) ::close(client);
  }
}
