// Command table puts the table of DHCP clients into a page of the docs:
//
//	go run ./tests/guests/table out/guests.json docs/guest.md
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"replug/tests/guests"
)

// The marks that the table stands between.
const begin, end = "<!-- table of clients -->\n", "<!-- end of the table -->\n"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: table GUESTS_JSON PAGE")
	}
	rows, err := guests.Load(args[0])
	if err != nil {
		return fmt.Errorf("%w (`make test-guests` writes it)", err)
	}
	for _, r := range rows {
		if said := r.Judge(); said != "" {
			fmt.Println(said)
		}
	}
	b, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	head, rest, ok1 := strings.Cut(string(b), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no place for the table: %s%s", args[1], begin, end)
	}
	return os.WriteFile(args[1], []byte(head+begin+guests.Markdown(rows)+end+tail), 0o644)
}
