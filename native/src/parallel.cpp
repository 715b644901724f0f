#include "parallel.h"

#include <algorithm>
#include <system_error>

namespace ei {

Threads::Threads(unsigned n)
{
    workers_.reserve(n - 1);
    try {
        for (unsigned worker = 1; worker < n; worker++) workers_.emplace_back(&Threads::work, this, worker);
    } catch (const std::system_error &) {  // the system gives no more
    }
}

Threads::~Threads()
{
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    started_.notify_all();
    for (std::thread &worker : workers_) worker.join();
}

void Threads::each(size_t n, size_t grain, const std::function<void(unsigned, size_t, size_t)> &step)
{
    if (workers_.empty() || n <= grain) {
        for (size_t begin = 0; begin < n; begin += grain) step(0, begin, std::min(n, begin + grain));
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        step_ = &step;
        n_ = n;
        grain_ = grain;
        next_ = 0;
        failure_ = nullptr;
        busy_ = static_cast<unsigned>(workers_.size());
        round_++;
    }
    started_.notify_all();
    take_pieces(0);
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [this] { return busy_ == 0; });
    if (failure_) std::rethrow_exception(failure_);
}

void Threads::work(unsigned worker)
{
    for (unsigned seen = 0;;) {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            started_.wait(lock, [&] { return stopping_ || round_ != seen; });
            if (stopping_) return;
            seen = round_;
        }
        take_pieces(worker);
        const std::lock_guard<std::mutex> lock(mutex_);
        if (--busy_ == 0) finished_.notify_one();
    }
}

void Threads::take_pieces(unsigned worker)
{
    try {
        for (size_t begin; (begin = next_.fetch_add(grain_)) < n_;) (*step_)(worker, begin, std::min(n_, begin + grain_));
    } catch (...) {
        next_ = n_;
        const std::lock_guard<std::mutex> lock(mutex_);
        failure_ = std::current_exception();
    }
}

}  // namespace ei
