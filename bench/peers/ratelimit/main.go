// A client of envoyproxy/ratelimit, as bench/peers/peers.py drives it: for each line with a number it
// asks for as many decisions over one gRPC connection, DEPTH at a time, and answers with its CPU time
// in ns and how many were allowed.
//
//	client PORT DEPTH KEY
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	common "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	service "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func cpuNs() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func decide(client service.RateLimitServiceClient, request *service.RateLimitRequest, decisions, depth int) int64 {
	var allowed, taken atomic.Int64
	var all sync.WaitGroup
	for i := 0; i < depth; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for taken.Add(1) <= int64(decisions) {
				answer, err := client.ShouldRateLimit(context.Background(), request)
				if err != nil {
					panic(err)
				}
				if answer.OverallCode == service.RateLimitResponse_OK {
					allowed.Add(1)
				}
			}
		}()
	}
	all.Wait()
	return allowed.Load()
}

func main() {
	depth, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	connection, err := grpc.NewClient("127.0.0.1:"+os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	client := service.NewRateLimitServiceClient(connection)
	request := &service.RateLimitRequest{
		Domain: "bench",
		Descriptors: []*common.RateLimitDescriptor{
			{Entries: []*common.RateLimitDescriptor_Entry{{Key: "user", Value: os.Args[3]}}},
		},
		HitsAddend: 1,
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		decisions, err := strconv.Atoi(lines.Text())
		if err != nil {
			panic(err)
		}
		begin := cpuNs()
		allowed := decide(client, request, decisions, depth)
		fmt.Println(cpuNs()-begin, allowed)
	}
}
