// Package e2e_test runs the real programs in a lab and asks them what no single
// room can answer: whether the whole does what its API, its command line and its
// design promise, when all goes well, when the request is wrong, and when
// something dies. Rooms are tested where they are; here nothing is played but
// the guests.
//
// Most tests share one cluster of two hosts. What destroys its server has a
// world of its own.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"replug/tests/lab"
)

// What the tests of this package share.
var (
	bin    string   // directory of the programs
	helper []string // lab.Config.Helper
	shared *world
)

func TestMain(m *testing.M) {
	if err := lab.Check(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "replug-e2e-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	bin = dir
	if helper, err = lab.BuildHelper(ctx, dir); err != nil {
		return fail(err)
	}
	if _, err = lab.Build(ctx, dir, "replug/cmd/replug", "replug/cmd/replug-server", "replug/cmd/replug-host", "replug/cmd/replug-guest"); err != nil {
		return fail(err)
	}
	image, err := lab.BuildGuest(ctx, dir+"/replug-guest")
	if err != nil {
		return fail(err)
	}
	if shared, err = newWorld(ctx, lab.Config{Name: fmt.Sprint("e2e", os.Getpid()%100000)}, image); err != nil {
		return fail(err)
	}
	code := m.Run()
	if err := errors.Join(shared.down(), goleak.Find()); err != nil {
		return fail(err)
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}
