package main

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows/svc"
)

// name of the service: sc.exe create replug-guest binPath= C:\...\replug-guest.exe start= auto
const name = "replug-guest"

// serve runs the agent for Windows' service manager; false: a person has started it.
func serve() bool {
	if is, err := svc.IsWindowsService(); err != nil || !is {
		return false
	}
	if err := svc.Run(name, service{}); err != nil {
		os.Exit(1)
	}
	return true
}

type service struct{}

// Execute runs until the manager asks for the end. The agent's own end is an error
// that makes the manager start it again, as its recovery settings say.
func (service) Execute(args []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	const accepts = svc.AcceptStop | svc.AcceptShutdown
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	log := openLog()
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, os.Args[1:], log, log) }()
	status <- svc.Status{State: svc.Running, Accepts: accepts}
	for {
		select {
		case code := <-ended:
			return code != 0, uint32(code)
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending}
				cancel()
			}
		}
	}
}

// openLog opens the service's log, which starts anew when it has a megabyte.
func openLog() io.Writer {
	file := filepath.Join(os.Getenv("ProgramData"), "Replug", "agent.log")
	_ = os.MkdirAll(filepath.Dir(file), 0o755)
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if info, err := os.Stat(file); err == nil && info.Size() > 1<<20 {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(file, flags, 0o600)
	if err != nil {
		return io.Discard // the service is worth more than its log
	}
	return f
}
