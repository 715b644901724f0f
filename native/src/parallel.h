// Loops shared by a few threads. Which thread does which step differs from run to run, so steps must not depend on it.
#ifndef EI_PARALLEL_H
#define EI_PARALLEL_H

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ei {

class Threads {
  public:
    // The calling thread is one of the n. Where the system gives fewer, they do the work of all.
    explicit Threads(unsigned n);
    ~Threads();
    Threads(const Threads &) = delete;
    Threads &operator=(const Threads &) = delete;

    unsigned count() const { return static_cast<unsigned>(workers_.size()) + 1; }

    // Call step(worker, begin, end) for pieces of at most `grain` that cover 0 to n; worker is below count(). Returns when all
    // are done; throws what a step threw, after which the other pieces may have been left out.
    void each(size_t n, size_t grain, const std::function<void(unsigned, size_t, size_t)> &step);

  private:
    void work(unsigned worker);
    void take_pieces(unsigned worker);

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable started_, finished_;
    unsigned round_ = 0, busy_ = 0;
    bool stopping_ = false;
    std::exception_ptr failure_;

    const std::function<void(unsigned, size_t, size_t)> *step_ = nullptr;
    size_t n_ = 0, grain_ = 1;
    std::atomic<size_t> next_{0};
};

}  // namespace ei
#endif
