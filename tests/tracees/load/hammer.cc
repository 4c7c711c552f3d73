// A memory hammer that verifies itself, for tests and benchmarks of migrations.
//
//   hammer [--mib N] [--rate-mb-s R|max] [--threads T] [--huge] [--mappings M] [--sparse-gib G]
//   [--heartbeat-us U] [--latency] [--report FILE]
//
// N MiB of incompressible data; T threads write pages of it in a scattered order, together R MB/s
// of dirtied pages. The order is a permutation: from the number of writes alone follows which stamp
// each page must carry, so a lost write is seen although nothing but a counter per thread remembers
// it (an index kept in memory could be lost together with the page). M more mappings have a page of
// data each; of a reservation of G GiB the first and the last page are used.
//
// A heartbeat thread takes CLOCK_REALTIME every U us (0: it spins) and keeps the largest gaps; that
// clock goes on while the program is moved, whatever namespace it is in. It also samples the
// progress of the writers every 10 ms, to see brownouts. Commands on stdin: "report" prints one
// line of JSON and starts the gaps anew; "progress" does the same with the samples in it (a longer
// line); "check" verifies, prints the JSON and "ok". With --report the JSON, with the samples, goes
// to FILE too.
#include <math.h>

#include <algorithm>
#include <numeric>

#include "tracee.h"
using namespace tracee;

struct Options {
  size_t mib = 64;
  double rate_mb_s = 0;  // 0: idle; infinity: as fast as it goes.
  size_t threads = 1;
  size_t mappings = 0;
  size_t sparse_gib = 0;
  bool huge = false;
  bool latency = false;
  int64_t heartbeat_us = 100;
  std::string report;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (name == "--huge") {
      o.huge = true;
      continue;
    }
    if (name == "--latency") {
      o.latency = true;
      continue;
    }
    need(i + 1 < argc, "value of %s", name.c_str());
    std::string value = argv[++i];
    if (name == "--mib")
      o.mib = strtoul(value.c_str(), nullptr, 10);
    else if (name == "--rate-mb-s")
      o.rate_mb_s = value == "max" ? HUGE_VAL : atof(value.c_str());
    else if (name == "--threads")
      o.threads = strtoul(value.c_str(), nullptr, 10);
    else if (name == "--mappings")
      o.mappings = strtoul(value.c_str(), nullptr, 10);
    else if (name == "--sparse-gib")
      o.sparse_gib = strtoul(value.c_str(), nullptr, 10);
    else if (name == "--heartbeat-us")
      o.heartbeat_us = atol(value.c_str());
    else if (name == "--report")
      o.report = value;
    else
      need(false, "unknown option %s", name.c_str());
  }
  need(o.threads > 0 && o.mib * MiB / page_size >= o.threads, "--threads and --mib");
  return o;
}

constexpr size_t words_per_page = page_size / 8;

// The part of the memory that one thread writes. Write k goes to page order(k mod pages) with stamp
// k / pages + 1.
struct Part {
  uint64_t* memory;
  size_t first_page, pages;
  size_t step;  // Coprime to `pages`: i -> i * step mod pages visits every page once.
  std::atomic<uint64_t> writes{0};

  void set_up(uint64_t* all, size_t first, size_t count) {
    memory = all + first * words_per_page;
    first_page = first;
    pages = count;
    step = std::max<size_t>(1, static_cast<size_t>(static_cast<double>(count) * 0.6180339887)) | 1;
    while (std::gcd(step, pages) != 1) step += 2;
    fill(memory, pages * page_size, first_page * words_per_page);
    for (size_t p = 0; p < pages; ++p) stamp(p, 0);
  }
  void stamp(size_t page, uint64_t value) {
    uint64_t* at = memory + page * words_per_page;
    at[0] = value;
    at[words_per_page - 1] = mix(value * 1'000'003 + first_page + page);
  }
  void write_next() {
    uint64_t k = writes.load(std::memory_order_relaxed);
    stamp(static_cast<size_t>(k % pages * static_cast<unsigned __int128>(step) % pages),
          k / pages + 1);
    writes.store(k + 1, std::memory_order_relaxed);
  }
  void verify() const {
    uint64_t rounds = writes / pages, in_this_round = writes % pages;
    for (size_t i = 0; i < pages; ++i) {
      size_t page = static_cast<size_t>(i * static_cast<unsigned __int128>(step) % pages);
      const uint64_t* at = memory + page * words_per_page;
      uint64_t expected = rounds + (i < in_this_round ? 1 : 0);
      if (!check(at[0] == expected, "page %zu carries stamp %llu, expected %llu", first_page + page,
                 static_cast<unsigned long long>(at[0]),
                 static_cast<unsigned long long>(expected)) ||
          !check(at[words_per_page - 1] == mix(expected * 1'000'003 + first_page + page),
                 "the end of page %zu is stale", first_page + page) ||
          !check_filled("page", at + 1, page_size - 16, (first_page + page) * words_per_page + 1))
        return;
    }
  }
};

// Latency of single writes in powers of two of a nanosecond: shows the page faults of a post-copy.
struct Histogram {
  std::atomic<uint64_t> buckets[40] = {};
  void add(int64_t ns) {
    ++buckets[std::min(39, 63 - __builtin_clzll(static_cast<uint64_t>(ns) | 1))];
  }
};

void write_pages(Part& part, double rate_mb_s, Histogram* latency, std::atomic<bool>& stop) {
  if (rate_mb_s == 0) return;
  const double pages_per_us = rate_mb_s * 1e6 / page_size / 1e6;
  constexpr int64_t credit_us_max = 10'000;  // After a standstill the writer doesn't catch up.
  int64_t done_until_us = now_us();
  double owed = 0;
  while (!stop) {
    int64_t now = now_us();
    bool limited = rate_mb_s != HUGE_VAL;
    owed = limited ? owed + pages_per_us *
                                static_cast<double>(std::min(now - done_until_us, credit_us_max))
                   : 256;
    done_until_us = now;
    for (; owed >= 1; owed -= 1) {
      int64_t start = latency != nullptr ? now_ns() : 0;
      part.write_next();
      if (latency != nullptr) latency->add(now_ns() - start);
    }
    if (limited) usleep(500);
  }
}

class Heartbeat {
 public:
  struct Gap {
    int64_t at_us, us;
  };
  struct Sample {
    int64_t at_us;
    uint64_t writes;
  };

  void run(int64_t period_us, const std::vector<Part>& parts, std::atomic<bool>& stop) {
    prctl(PR_SET_TIMERSLACK, 1);
    samples_.reserve(samples_max);
    int64_t last = now_us(CLOCK_REALTIME), next_sample = last;
    while (!stop) {
      if (period_us > 0) {
        timespec t = timespec_of_us(period_us);
        nanosleep(&t, nullptr);
      }
      int64_t now = now_us(CLOCK_REALTIME);
      pthread_mutex_lock(&mutex_);
      ++beats_;
      beat(Gap{last, now - last});
      if (now >= next_sample && samples_.size() < samples_max) {
        samples_.push_back({now, total(parts)});
        next_sample = now + sample_period_us;
      }
      pthread_mutex_unlock(&mutex_);
      last = now;
    }
  }

  std::string json(bool with_samples) {
    pthread_mutex_lock(&mutex_);
    std::string text = "\"beats\":" + std::to_string(beats_) + ",\"gaps\":[";
    for (const Gap& g : gaps_) {
      text += &g == &gaps_[0] ? "" : ",";
      text += "{\"at_us\":" + std::to_string(g.at_us) + ",\"us\":" + std::to_string(g.us) + "}";
    }
    text += "]";
    if (with_samples) {
      text += ",\"progress\":[";
      for (const Sample& s : samples_) {
        text += &s == &samples_[0] ? "" : ",";
        text += "[" + std::to_string(s.at_us) + "," + std::to_string(s.writes) + "]";
      }
      text += "]";
      samples_.clear();
    }
    gaps_.clear();
    beats_ = 0;
    pthread_mutex_unlock(&mutex_);
    return text;
  }

  static uint64_t total(const std::vector<Part>& parts) {
    uint64_t sum = 0;
    for (const Part& p : parts) sum += p.writes.load(std::memory_order_relaxed);
    return sum;
  }

 private:
  static constexpr size_t gaps_max = 16, samples_max = 60'000;
  static constexpr int64_t sample_period_us = 10'000;

  void beat(Gap gap) {  // gaps_: largest first.
    if (gaps_.size() == gaps_max && gaps_.back().us >= gap.us) return;
    auto at = std::upper_bound(gaps_.begin(), gaps_.end(), gap,
                               [](const Gap& a, const Gap& b) { return a.us > b.us; });
    gaps_.insert(at, gap);
    if (gaps_.size() > gaps_max) gaps_.pop_back();
  }

  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  uint64_t beats_ = 0;
  std::vector<Gap> gaps_;
  std::vector<Sample> samples_;
};

// Neighbours of differing protection, which therefore stay mappings of their own.
class ManyMappings {
 public:
  explicit ManyMappings(size_t count) : count_(count) {
    if (count == 0) return;
    memory_ = map(count * page_size);
    for (size_t i = 0; i < count; ++i) *word(i) = mix(i);
    for (size_t i = 0; i < count; i += 2)
      need(mprotect(word(i), page_size, PROT_READ) == 0, "mprotect %zu", i);
  }
  void verify() const {
    for (size_t i = 0; i < count_; ++i)
      if (!check(*word(i) == mix(i), "mapping %zu of %zu lost its data", i, count_)) return;
  }

 private:
  uint64_t* word(size_t i) const { return reinterpret_cast<uint64_t*>(memory_ + i * page_size); }

  size_t count_;
  uint8_t* memory_ = nullptr;
};

class SparseReservation {
 public:
  explicit SparseReservation(size_t gib) : bytes_(gib * GiB) {
    if (gib == 0) return;
    memory_ = map(bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    memory_[0] = 1;
    memory_[bytes_ - 1] = 2;
  }
  void verify() const {
    if (memory_ == nullptr) return;
    check(memory_[0] == 1 && memory_[bytes_ - 1] == 2 && memory_[bytes_ / 2] == 0,
          "the reservation of %zu bytes has other content", bytes_);
  }

 private:
  size_t bytes_;
  uint8_t* memory_ = nullptr;
};

// "check", "report" and "progress"; anything else is ignored. The end of stdin ends the program:
// nobody will ask any more.
std::string read_command() {
  std::string line;
  for (;;) {
    char c;
    ssize_t n = read(0, &c, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      say("FAIL: stdin ended before \"check\"");
      _exit(1);
    }
    if (c == '\r') continue;
    if (c != '\n')
      line += c;
    else if (line == "check" || line == "report" || line == "progress")
      return line;
    else
      line.clear();
  }
}

int main(int argc, char** argv) {
  Options o = parse(argc, argv);
  const size_t bytes = o.mib * MiB, huge_bytes = 2 * MiB;
  uint8_t* raw = map(bytes + huge_bytes);
  auto* memory = reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(raw) + huge_bytes - 1) &
                                             ~(huge_bytes - 1));
  madvise(memory, bytes,
          o.huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);  // Without THP in the kernel both are no-ops.

  std::vector<Part> parts(o.threads);
  const size_t pages = bytes / page_size;
  for (size_t i = 0; i < o.threads; ++i)
    parts[i].set_up(memory, pages * i / o.threads,
                    pages * (i + 1) / o.threads - pages * i / o.threads);

  ManyMappings mappings(o.mappings);
  SparseReservation reservation(o.sparse_gib);

  Histogram latency;
  Heartbeat heartbeat;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (Part& part : parts)
    threads.emplace_back([&] {
      write_pages(part, o.rate_mb_s / static_cast<double>(o.threads),
                  o.latency ? &latency : nullptr, stop);
    });
  threads.emplace_back([&] { heartbeat.run(o.heartbeat_us, parts, stop); });

  int64_t start = now_us(CLOCK_REALTIME);
  auto report = [&](bool with_samples) {
    std::string head = "{\"mib\":" + std::to_string(o.mib) +
                       ",\"threads\":" + std::to_string(o.threads) +
                       ",\"writes\":" + std::to_string(Heartbeat::total(parts)) +
                       ",\"us\":" + std::to_string(now_us(CLOCK_REALTIME) - start) +
                       ",\"failures\":" + std::to_string(failures) + ",";
    if (o.latency) {
      head += "\"latency_log2_ns\":[";
      for (auto& b : latency.buckets)
        head += (&b == &latency.buckets[0] ? "" : ",") + std::to_string(b.exchange(0));
      head += "],";
    }
    std::string body = heartbeat.json(with_samples || !o.report.empty());
    if (!o.report.empty()) write_file(o.report, head + body + "}\n", 0644);
    std::string line =
        head + (with_samples ? body : body.substr(0, body.find(",\"progress\""))) + "}\n";
    for (size_t done = 0; done < line.size();) {
      ssize_t n = write(1, line.data() + done, line.size() - done);
      if (n <= 0) _exit(3);
      done += static_cast<size_t>(n);
    }
  };

  ready();
  for (std::string command = read_command(); command != "check"; command = read_command())
    report(command == "progress");
  stop = true;
  for (auto& t : threads) t.join();
  for (const Part& part : parts) part.verify();
  mappings.verify();
  reservation.verify();
  report(false);
  return ok();
}
