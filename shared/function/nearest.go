package function

import "strings"

// Nearest returns the word at the smallest edit distance from name, without case, if that is at most a third of the name's
// length; the first of equals; "" when none is near. It turns a typo in a key into a question.
func Nearest(name string, words []string) string {
	best, limit := "", len(name)/3
	for _, word := range words {
		if d := distance(strings.ToLower(name), strings.ToLower(word), limit); d <= limit {
			best, limit = word, d-1
		}
	}
	return best
}

// distance is Levenshtein's, over bytes; something over limit when it is over limit.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d > limit || -d > limit {
		return limit + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
