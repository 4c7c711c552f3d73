// The capsule's stdin, stdout and stderr: pipes or a pseudo terminal on the program's side,
// numbered bytes on the clients'. Knows nothing of clients' connections.
#pragma once

#include <poll.h>
#include <sys/types.h>

#include <cstdint>

#include "capsule/init/fail.h"
#include "capsule/init/ring.h"
#include "capsule/init_protocol.h"
#include "capsule/relay_state.h"

namespace godwit::init {

class Relay {
 public:
  enum class Kind { none, pipes, terminal };

  Fail map_memory();  // Once.

  // The program's side. `capacities`: of the three pipes, or null.
  Fail make_pipes(const std::uint32_t* capacities);
  Fail make_terminal(std::uint16_t rows, std::uint16_t columns);
  Fail make_early_terminal();  // See Message::terminal.
  Kind kind() const { return kind_; }
  int program_end(int number) const;  // What becomes descriptor 0, 1 or 2; shared, for dup2.
  // The same three, or one for a terminal; `original`: what program_end is, else descriptions of
  // their own. An opened pipe shows O_LARGEFILE, one made by pipe2 doesn't.
  Fail open_program_ends(bool original, int* fds, int& count) const;
  Fail info(capsule::StdioInfo& out) const;

  // Moving.
  Fail get(int memfd, std::uint64_t& bytes);  // Stops the relay, writes the state.
  Fail put(int memfd, std::uint64_t bytes);   // Makes the program's side too.
  void go();
  void stop() { running_ = false; }
  bool running() const { return running_; }

  // Poll: fills at most 3 entries and says how many; `timeout_ms` is lowered if something needs it.
  int poll_set(pollfd* out, int& timeout_ms);
  Fail work();  // Moves what can be moved now.

  // Clients' side.
  const ByteRing& output() const { return out_; }
  std::uint64_t acked() const { return acked_; }
  void ack(std::uint64_t number);
  // The run of one stream at `number`, at most a packet's payload; stream 1 or 2.
  iovec output_at(std::uint64_t number, int& stream) const;
  // Takes input numbered from `from` on; what is known already is skipped, a gap is refused. Input
  // that comes while the relay stands still or beyond the window is dropped: see resend_due.
  Fail input(std::uint64_t from, const char* bytes, std::size_t count);
  void input_end(std::uint64_t end);
  std::uint64_t input_next() const { return in_.end(); }
  std::uint64_t input_written() const { return in_.begin(); }
  bool resend_due() const;  // Input was dropped and can be taken again.
  void resend_told() { resend_ = false; }
  void input_restarts() { resend_ = gap_ = false; }  // A client begins at input_next.
  Fail set_winsize(std::uint32_t size, std::uint32_t pixels);
  pid_t foreground_group() const;

  // The main program.
  pid_t main_pid() const { return main_pid_; }
  void set_main(pid_t pid) { main_pid_ = pid; }
  void main_exited(int wait_status);
  bool exited() const { return exited_; }
  int wait_status() const { return wait_status_; }
  // All that the program had written when it ended is in the ring; then `exit_at` is its end.
  bool exit_drained() const { return exited_ && left_[0] <= 0 && left_[1] <= 0; }
  std::uint64_t exit_at() const { return exit_at_; }

 private:
  bool output_room() const;
  void drop_input();
  Fail read_output(int index, bool past_limit);
  Fail drain_output();
  Fail feed_pipe();
  Fail feed_terminal();
  Fail peek_stdin(int memfd, std::uint64_t& offset, std::uint64_t& bytes);
  Fail write_ring(int memfd, std::uint64_t& offset, const ByteRing& ring) const;
  Fail write_bits(int memfd, std::uint64_t& offset) const;
  Fail fill_terminal_head(capsule::RelayHead& head) const;
  Fail load_output(int memfd, const capsule::RelayHead& head, std::uint64_t& offset);
  Fail load_input(int memfd, const capsule::RelayHead& head, std::uint64_t& offset);
  Fail load_terminal(int memfd, const capsule::RelayHead& head, std::uint64_t& offset);
  Fail load_terminal_settings(const capsule::RelayHead& head);
  void note_drained();

  Kind kind_ = Kind::none;
  bool early_ = false;  // The terminal is there, and waits for put().
  // Ours: non-blocking. The program's: kept so that neither side ever sees the other gone.
  int stdin_write_ = -1, stdin_read_ = -1;
  int output_read_[2] = {-1, -1}, output_write_[2] = {-1, -1};
  int master_ = -1, slave_ = -1;
  int ours_ = -1;                 // The slave again, non-blocking: to look at the program's queue.
  bool master_gone_ = false;      // Hung up.
  std::size_t terminal_fed_ = 0;  // Bytes that may be in its queue.
  std::size_t line_fed_ = 0;      // Bytes since the last end of line.

  ByteRing out_;
  StreamBits streams_;
  std::uint64_t acked_ = 0;
  ByteRing in_;
  bool eof_ = false;
  std::uint64_t eof_at_ = 0;
  bool eof_done_ = false;
  bool resend_ = false;  // The client isn't told yet that input was dropped.
  bool gap_ = false;     // Nothing was accepted since.
  bool running_ = false;

  pid_t main_pid_ = 0;
  bool exited_ = false;
  int wait_status_ = 0;
  long left_[2] = {0, 0};  // Written before the exit, not yet read.
  std::uint64_t exit_at_ = 0;
};

}  // namespace godwit::init
