// Decides checks with golang.org/x/time/rate: a token bucket that we did not write.
//
// Little-endian, from stdin: the number of keys (uint32); for each key its limit, its period in ns
// and its burst (uint64 each); then rounds until the end, a check of each key in turn: the time in
// ns and the cost in tokens (uint64 each). To stdout, after each round: one byte per key, 1 for
// allowed.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/time/rate"
)

const (
	limitBytes = 24
	checkBytes = 16
)

func run(in io.Reader, out io.Writer) error {
	var count uint32
	if err := binary.Read(in, binary.LittleEndian, &count); err != nil {
		return fmt.Errorf("the number of keys: %w", err)
	}
	limits := make([]byte, limitBytes*int(count))
	if _, err := io.ReadFull(in, limits); err != nil {
		return fmt.Errorf("the limits: %w", err)
	}
	limiters := make([]*rate.Limiter, count)
	for i := range limiters {
		of := limits[limitBytes*i:]
		limit := float64(binary.LittleEndian.Uint64(of))
		periodNs := float64(binary.LittleEndian.Uint64(of[8:]))
		burst := int(binary.LittleEndian.Uint64(of[16:]))
		limiters[i] = rate.NewLimiter(rate.Limit(limit*1e9/periodNs), burst)
	}
	round := make([]byte, checkBytes*int(count))
	answers := make([]byte, count)
	for {
		if _, err := io.ReadFull(in, round); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("a round: %w", err)
		}
		for i, limiter := range limiters {
			of := round[checkBytes*i:]
			now := time.Unix(0, int64(binary.LittleEndian.Uint64(of)))
			cost := int(binary.LittleEndian.Uint64(of[8:]))
			answers[i] = 0
			if limiter.AllowN(now, cost) {
				answers[i] = 1
			}
		}
		if _, err := out.Write(answers); err != nil {
			return fmt.Errorf("the answers: %w", err)
		}
	}
}

func main() {
	if err := run(bufio.NewReaderSize(os.Stdin, 1<<20), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}
