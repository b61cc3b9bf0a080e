// Command lab is what the Makefile and the tests need of the lab without the
// rest of Replug: check, residue, down, and the helper processes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"replug/tests/lab"
)

const usage = `usage:
  lab check             say what this machine lacks
  lab residue [LAB]     list what is left of a lab, or of all; exits 1 if anything is
  lab down LAB          take a lab down
  lab down --stale      take down all labs whose owner is dead
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "helper" {
		stop() // helpers end by signal
		args, ctx = args[1:], context.Background()
		exit(lab.HelperMain(args))
	}
	exit(run(ctx, args))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "check":
		return lab.Check()
	case len(args) >= 1 && len(args) <= 2 && args[0] == "residue":
		return residue(args[1:])
	case len(args) == 2 && args[0] == "down" && args[1] == "--stale":
		gone, err := lab.DownStale(ctx)
		for _, name := range gone {
			fmt.Fprintln(os.Stderr, "took down lab", name)
		}
		return err
	case len(args) == 2 && args[0] == "down":
		return lab.Down(ctx, args[1])
	}
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
	return nil
}

func residue(args []string) error {
	name := ""
	if len(args) == 1 {
		name = args[0]
	}
	left := lab.Residue(name)
	for _, l := range left {
		fmt.Println(l)
	}
	if len(left) > 0 {
		return fmt.Errorf("%d things are left behind", len(left))
	}
	return nil
}
