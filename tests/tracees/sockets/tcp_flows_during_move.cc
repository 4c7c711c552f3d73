// Numbers flow both ways through TCP connections of IPv4 and IPv6 within the program while it is
// moved. No byte is lost, doubled or out of order.
#include "tcp.h"
using namespace tracee;

namespace {

class Flow {
 public:
  Flow(int from, int to) : from_(from), to_(to) {}

  void write_until(std::atomic<bool>& stop) {
    while (!stop) {
      const std::string data = piece(written_, 10'007);
      for (size_t done = 0; done < data.size();) {
        const ssize_t n = send(from_, data.data() + done, data.size() - done, 0);
        if (n <= 0) return void(check(false, "send gave %zd, errno %d", n, errno));
        done += static_cast<size_t>(n);
      }
      written_ += data.size();
      usleep(1'000);  // Else it takes a processor from whoever moves it.
    }
    shutdown(from_, SHUT_WR);
  }
  void read_all() {
    std::string buffer(7'001, '\0');
    for (ssize_t n; (n = recv(to_, buffer.data(), buffer.size(), 0)) != 0;) {
      if (n < 0) return void(check(false, "recv: errno %d", errno));
      if (!check(buffer.substr(0, static_cast<size_t>(n)) == piece(came, static_cast<size_t>(n)),
                 "bytes from %lu on are wrong", came.load()))
        return;
      came += static_cast<size_t>(n);
    }
  }
  uint64_t written() const { return written_; }

  std::atomic<uint64_t> came{0};

 private:
  int from_, to_;
  std::atomic<uint64_t> written_{0};
};

}  // namespace

int main() {
  Listener v4(AF_INET), v6(AF_INET6);
  Pair four(v4), six(v6);
  Flow flows[] = {{four.client, four.server},
                  {four.server, four.client},
                  {six.client, six.server},
                  {six.server, six.client}};
  auto all_beyond = [&](const uint64_t(&before)[4]) {
    for (int i = 0; i < 4; ++i)
      if (flows[i].came < before[i] + 100'000) return false;
    return true;
  };
  std::vector<std::thread> readers;
  for (Flow& flow : flows) readers.emplace_back([&] { flow.read_all(); });
  {
    auto writer = [&](int i) {
      return [&flows, i](std::atomic<bool>& stop) { flows[i].write_until(stop); };
    };
    Background w0(writer(0)), w1(writer(1)), w2(writer(2)), w3(writer(3));
    need(eventually([&] { return all_beyond({0, 0, 0, 0}); }), "nothing flows");
    ready();
    wait_moved();
    const uint64_t before[4] = {flows[0].came, flows[1].came, flows[2].came, flows[3].came};
    check(eventually([&] { return all_beyond(before); }), "it doesn't flow any more");
  }
  for (std::thread& reader : readers) reader.join();
  for (Flow& flow : flows) same("bytes", flow.written(), flow.came.load());
  return ok();
}
