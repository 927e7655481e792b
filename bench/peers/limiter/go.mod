module sluice/bench/peers/limiter

go 1.18

// The last version that Debian 12's Go (1.19) may build: later ones ask for 1.23.

require golang.org/x/time v0.10.0
