package guest

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"replug/directory/vnet"
)

// openPort opens the second channel: a file, a Unix socket, or "" for the virtio
// port of its name. There may be no udev in the guest that would name its file.
func openPort(path string) (io.ReadWriteCloser, error) {
	if path == "" {
		var err error
		if path, err = findPort(); err != nil {
			return nil, err
		}
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		return net.Dial("unix", path)
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

func findPort() (string, error) {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name") // the pattern is well formed
	for _, file := range names {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == vnet.ChannelName {
			return "/dev/" + filepath.Base(filepath.Dir(file)), nil
		}
	}
	return "", fmt.Errorf("virtio port %s: %w", vnet.ChannelName, os.ErrNotExist)
}
