// golang.org/x/time/rate, one limiter, as bench/peers/peers.py drives it: for each line with a number
// it makes as many decisions, and answers with the CPU time in ns and how many were allowed.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/time/rate"
)

func cpuNs() int64 {
	var usage syscall.Rusage
	// This thread's, as it is locked.
	if err := syscall.Getrusage(1, &usage); err != nil {
		panic(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func main() {
	runtime.LockOSThread()
	limiter := rate.NewLimiter(1e9, 1<<30)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var decisions, allowed int
		if _, err := fmt.Sscan(lines.Text(), &decisions); err != nil {
			panic(err)
		}
		begin := cpuNs()
		for i := 0; i < decisions; i++ {
			if limiter.Allow() {
				allowed++
			}
		}
		fmt.Println(cpuNs()-begin, allowed)
	}
}
